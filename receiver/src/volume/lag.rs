//! Lag, the headline figure: how much would be lost if the source were gone now.

/// Nanoseconds from the newest covered instant to `now_ns`, both since 1970; `u64::MAX` if nothing is covered.
///
/// `covered_ns` is by the source's clock and `now_ns` by the receiver's, so the figure is as good as the clocks agree.
/// It is not corrected by the offset seen in heartbeats: the way of a heartbeat takes time too, and a correction
/// could only make the lag look smaller than it is. A source whose clock is ahead shows 0.
pub fn lag_ns(now_ns: u64, covered_ns: u64) -> u64 {
    if covered_ns == 0 { u64::MAX } else { now_ns.saturating_sub(covered_ns) }
}

#[cfg(test)]
mod tests {
    use super::lag_ns;

    #[test]
    fn nothing_covered_is_not_no_lag() {
        assert_eq!(lag_ns(1_000, 0), u64::MAX);
        assert_eq!(lag_ns(1_000, 400), 600);
        assert_eq!(lag_ns(1_000, 1_200), 0);
    }
}
