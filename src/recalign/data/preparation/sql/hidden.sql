-- Items that this run hides, by a hash of (seed, item): half of the share for validation, half for test.
create table hidden as
select item_id, if(place < $share / 2, 'validation', 'test') as hidden
from (
    select item_id, md5_number_lower(concat('hidden-', $seed, '-', item_id)) / 18446744073709551616.0 as place
    from read_parquet($items)
)
where place < $share
