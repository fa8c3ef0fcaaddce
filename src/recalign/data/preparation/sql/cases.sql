-- Validation and test examples of a range of users, with the key of their stream of random numbers.
select
    user_id,
    target,
    view,
    pool,
    cutoff,
    md5_number_lower(concat('candidates-', $seed, '-', user_id, '-', target)) as key
from targets
where split <> 'train' and user_id between $first and $last
order by user_id, position, target
