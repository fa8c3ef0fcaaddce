-- What each user has met, liked or not, before or after: never a wrong candidate.
create table seen as
select user_id, item_id, met as timestamp, liked
from log
order by user_id, item_id
