-- The likes right before each target, oldest first.
with sequence as (
    select user_id, list(item_id order by position) as items
    from events
    where user_id between $first and $last
    group by user_id
)
select
    concat(user_id, '-', target) as example_id,
    user_id,
    split,
    cutoff,
    items[greatest(position - $max_history, 0) + 1:position] as history,
    target
from targets
join sequence using (user_id)
where user_id between $first and $last
order by user_id, position
