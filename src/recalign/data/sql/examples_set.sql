-- The user's items that are no target of any example, in an order of the example's own.
with context as (
    select user_id, item_id
    from events
    anti join targets on events.user_id = targets.user_id and events.item_id = targets.target
    where user_id between $first and $last
)
select
    concat(user_id, '-', target) as example_id,
    user_id,
    split,
    any_value(cutoff) as cutoff,
    list(
        item_id order by md5_number_lower(concat('history-', user_id, '-', target, '-', item_id)), item_id
    )[1:$max_history] as history,
    target
from targets
join context using (user_id)
where user_id between $first and $last
group by user_id, split, target, position
order by user_id, position
