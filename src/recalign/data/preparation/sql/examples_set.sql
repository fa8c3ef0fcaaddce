-- The user's items that are no target of any example, in an order of the example's own.
with context as (
    select user_id, item_id
    from events
    anti join targets on events.user_id = targets.user_id and events.item_id = targets.target
    where user_id between $first and $last and split <> 'outside'
)
select
    concat(user_id, '-', target) as example_id,
    user_id,
    split,
    view,
    any_value(cutoff) as cutoff,
    coalesce(
        list(
            item_id order by md5_number_lower(concat('history-', user_id, '-', target, '-', item_id)), item_id
        ) filter (item_id is not null), []
    )[1:shown] as history,
    target
from targets
left join context using (user_id)
where user_id between $first and $last
group by user_id, split, view, target, position, shown
order by user_id, position, target
