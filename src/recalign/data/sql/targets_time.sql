-- Likes to be predicted. Users who have met all but a few items have no full list of wrong candidates: no case of theirs.
create table targets as
select user_id, item_id as target, split, timestamp as cutoff, position
from events
where position >= $min_history
    and (split <> 'train' or timestamp >= $profile_cutoff)
    and (split = 'train' or user_id not in (select user_id from seen group by user_id having count(*) > $most_seen))
qualify row_number() over (
    partition by user_id, split
    order by md5_number_lower(concat('target-', user_id, '-', item_id)), item_id
) <= if(split = 'train', $train_examples_per_user, $cases_per_user)
order by user_id, position
