-- Times below which the given shares of all likes lie, hidden items aside.
select quantile_disc(timestamp, [$profile_share, $before_validation, $before_test]) from sequences where hidden is null
