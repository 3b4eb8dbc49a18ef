//! Which CPUs the shards get, and which one the control plane.

use crate::shard::placement::HOUSEKEEPING_CPUS_MIN;

/// Where the threads of the server run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// One shard on each.
    pub shards: Vec<usize>,
    /// The control plane's; shared with the last shard where there are few.
    pub control: Option<usize>,
}

/// Place the shards on `wanted`, or on every CPU in `usable` when nothing is wanted.
pub fn place(usable: &[usize], wanted: Option<Vec<usize>>) -> Placement {
    let many = usable.len() >= HOUSEKEEPING_CPUS_MIN;
    let shards = wanted.unwrap_or_else(|| match usable {
        [shards @ .., _] if many => shards.to_vec(),
        all => all.to_vec(),
    });
    let spare = usable.iter().rev().find(|cpu| many && !shards.contains(cpu));
    let control = spare.or(shards.last()).copied();
    Placement { shards, control }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_control_plane_shares_the_last_core_only_where_there_are_few() {
        let few: Vec<usize> = (0..4).collect();
        let many: Vec<usize> = (0..8).collect();
        assert_eq!(place(&few, None), Placement { shards: few.clone(), control: Some(3) });
        assert_eq!(place(&many, None), Placement { shards: (0..7).collect(), control: Some(7) });
        assert_eq!(place(&few, Some(vec![1, 2])), Placement { shards: vec![1, 2], control: Some(2) });
        assert_eq!(place(&many, Some(vec![6, 7])), Placement { shards: vec![6, 7], control: Some(5) });
        assert_eq!(place(&many, Some(many.clone())), Placement { shards: many.clone(), control: Some(7) });
    }
}
