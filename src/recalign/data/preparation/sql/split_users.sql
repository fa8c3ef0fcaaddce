-- Without a clock whole users are split. The hash is of the user alone, so a user keeps its split when others come.
create table placed as
with hashed as (
    select *, md5_number_lower(concat('split-', user_id)) / 18446744073709551616.0 as place from sequences
)
select
    * exclude (place),
    case
        when place < $test_share then 'test'
        when place < $test_share + $validation_share then 'validation'
        else 'train'
    end as split
from hashed
