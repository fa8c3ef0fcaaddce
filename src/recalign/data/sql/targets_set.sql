-- Likes to be predicted where there is no clock: at most half of a user's items, and min_history are left as history.
create table targets as
select user_id, item_id as target, split, timestamp as cutoff, position
from events
where split = 'train'
    or user_id not in (select user_id from seen group by user_id having count(*) > $most_seen)
qualify row_number() over (
    partition by user_id
    order by md5_number_lower(concat('target-', user_id, '-', item_id)), item_id
) <= least(
    if(split = 'train', $train_examples_per_user, $cases_per_user),
    count(*) over (partition by user_id) - $min_history,
    greatest(count(*) over (partition by user_id) // 2, 1)
)
order by user_id, position
