-- Ranges of users with about so many events each: what is worked on at once.
with running as (
    select user_id, sum(count(*)) over (order by user_id) as events_so_far
    from events
    group by user_id
)
select min(user_id), max(user_id)
from running
group by events_so_far // $chunk_events
order by 1
