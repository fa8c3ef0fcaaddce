-- Likes of validation and test with their view; null where both the history and the target are cold. fits: the pool
-- holds enough items that the user never met and that there were when the split began, to fill a list.
create table possible as
with sizes as (
    select pool, split, count(*) as size
    from pools
    cross join (values ('validation', $validation::timestamp), ('test', $test::timestamp)) as splits(split, begins)
    left join available using (item_id)
    where available_from is null or begins is null or available_from <= begins
    group by pool, split
),
met as (
    select user_id, pool, count(*) as met
    from seen
    join pools using (item_id)
    where user_id in (select user_id from placed where split <> 'train')
    group by user_id, pool
)
select
    placed.user_id,
    item_id as target,
    placed.timestamp as cutoff,
    split,
    position,
    length,
    pool,
    case
        when pool = 'warm' then if(position >= $min_history, 'warm', 'user-cold')
        when position >= $min_history then if(placed.hidden is null, 'item-cold-natural', 'item-cold-hidden')
    end as view,
    coalesce(size, 0) - met >= $candidates - 1 as fits
from placed
join pools using (item_id)
join met using (user_id, pool)
left join sizes using (pool, split)
where split <> 'train' and (placed.hidden is null or placed.hidden = split)
