-- Global time split: one clock for all users, so that no model learns from another user's future.
create table events as
select
    user_id,
    item_id,
    timestamp,
    position,
    case when timestamp < $validation then 'train' when timestamp < $test then 'validation' else 'test' end as split
from sequences
order by user_id, position
