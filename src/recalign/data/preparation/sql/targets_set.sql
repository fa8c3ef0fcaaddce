-- Likes to be predicted where there is no clock: at most half of a user's items, and min_history are left as history.
-- One more is asked with a history cut below min_history, or with what a small history holds: the user-cold case.
create table targets as
with asked as (
    select user_id, item_id as target, split, position, null as view, null as pool, null as hidden
    from events
    where split = 'train'
    union all by name
    select user_id, target, split, position, if(pool = 'warm', 'warm', 'item-cold-natural') as view, pool, null as hidden
    from possible
    where fits and pool not like 'hidden-%'
    union all by name
    select user_id, target, split, position, 'item-cold-hidden' as view, pool, true as hidden
    from possible
    where fits and pool like 'hidden-%'
),
sizes as (
    select user_id, count(*) as length from events where split <> 'outside' group by user_id
),
counted as (
    select
        asked.*,
        length,
        greatest(
            least(if(split = 'train', $train_examples_per_user, $cases_per_user), length - $min_history, length // 2), 0
        ) as taken,
        row_number() over (
            partition by user_id, asked.hidden
            order by md5_number_lower(concat('target-', user_id, '-', target)), target
        ) as place
    from asked
    join sizes using (user_id)
),
viewed as (
    select
        *,
        hidden is null and place = taken + 1 and pool = 'warm'
        and (taken = 0 or length - taken > $min_history) as last
    from counted
)
select
    user_id,
    target,
    null::timestamp as cutoff,
    split,
    position,
    if(last, 'user-cold', view) as view,
    pool,
    if(last, md5_number_lower(concat('shown-', user_id)) % $min_history, $max_history)::bigint as shown
from viewed
where last
    or (hidden is null and place <= taken)
    or (hidden and place <= $cases_per_user and length - taken - 1 >= $min_history)
order by user_id, position, target
