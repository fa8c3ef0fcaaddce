-- What each kept user has met, liked or not, before or after: never a wrong candidate.
create table seen as
select user_id, item_id
from log
where user_id in (select user_id from likes) and item_id in (select item_id from likes)
order by user_id, item_id
