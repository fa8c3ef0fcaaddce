-- Likes in the user's order; 'outside' are those before the cutoff that the k-core keeps from training.
create table events as
select
    user_id,
    item_id,
    timestamp,
    position,
    if(split = 'train' and trained.item_id is null, 'outside', split) as split
from placed
left join trained using (user_id, item_id)
where hidden is null
order by user_id, position
