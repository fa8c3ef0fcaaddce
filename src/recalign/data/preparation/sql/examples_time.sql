-- The likes right before each target, oldest first: of train those that it is trained on, of other splits all of them.
with sequences as (
    select
        user_id,
        list(item_id order by position) as every,
        list(item_id order by position) filter (split = 'train') as trained
    from events
    where user_id between $first and $last
    group by user_id
)
select
    concat(user_id, '-', target) as example_id,
    user_id,
    split,
    view,
    cutoff,
    coalesce(
        if(split = 'train', trained[greatest(likes - shown, 0) + 1:likes], every[greatest(likes - shown, 0) + 1:likes]), []
    ) as history,
    target
from targets
join sequences using (user_id)
where user_id between $first and $last
order by user_id, position, target
