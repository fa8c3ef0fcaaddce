-- Likes to be predicted: of train those that it is trained on, of validation and test whatever fills a list.
create table targets as
with asked as (
    select
        user_id,
        item_id as target,
        timestamp as cutoff,
        split,
        position,
        row_number() over (partition by user_id order by position) - 1 as likes,
        null as view,
        null as pool
    from events
    where split = 'train'
    union all by name
    select user_id, target, cutoff, split, position, position as likes, view, pool
    from possible
    where fits and view is not null
)
select *, $max_history as shown
from asked
where split <> 'train' or (likes >= $min_history and cutoff >= $profile_cutoff)
qualify row_number() over (
    partition by user_id, split, view
    order by md5_number_lower(concat('target-', user_id, '-', target)), target
) <= if(split = 'train', $train_examples_per_user, $cases_per_user)
order by user_id, position, target
