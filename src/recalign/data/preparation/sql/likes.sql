create table likes as
select user_id, item_id, timestamp, hidden
from log
left join hidden using (item_id)
where liked
