-- The logs that forbid candidates, of a range of users.
select user_id, item_id
from seen
where user_id between $first and $last
order by user_id, item_id
