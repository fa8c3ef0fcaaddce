-- Leave-one-out: each user's last like is test, the one before it validation. A hidden item is asked for in its own split.
create table placed as
select
    *,
    case
        when hidden is not null then hidden
        when length - position = 1 then 'test'
        when length - position = 2 then 'validation'
        else 'train'
    end as split
from sequences
