-- Leave-one-out: each user's last like is test, the one before it validation.
create table events as
select
    user_id,
    item_id,
    timestamp,
    position,
    case length - position when 1 then 'test' when 2 then 'validation' else 'train' end as split
from sequences
order by user_id, position
