create table likes as
select user_id, item_id, timestamp from log where liked
