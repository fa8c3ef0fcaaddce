-- Global time split: one clock for all users, so that no model learns from another user's future.
create table placed as
select
    *,
    case when timestamp < $validation then 'train' when timestamp < $test then 'validation' else 'test' end as split
from sequences
