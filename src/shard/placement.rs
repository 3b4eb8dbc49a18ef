//! Which CPUs shards run on, and pinning to them.

use std::collections::BTreeSet;

/// Below this many CPUs the control plane shares the last shard's CPU instead of having one of its own.
pub const HOUSEKEEPING_CPUS_MIN: usize = 8;

/// CPUs this process may use, ascending.
pub fn allowed_cpus() -> Vec<usize> {
    let mut cpus: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    cpus.sort_unstable();
    if cpus.is_empty() {
        // The system would not say; one unpinned shard still serves.
        cpus.push(0);
    }
    cpus
}

/// Why a list of CPUs was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoresError {
    /// Not numbers and ranges.
    #[error("'{0}' is not a list of CPUs; write numbers and ranges, for example 0,2-5")]
    Syntax(String),
    /// A CPU this process may not run on.
    #[error("CPU {cpu} is not available to this process (it may use {})", list(allowed))]
    NotAllowed {
        /// The CPU asked for.
        cpu: usize,
        /// Those that may be used.
        allowed: Vec<usize>,
    },
}

/// Parse a list such as `0,2-5`, in the order written, each CPU once, and check it against the CPUs that may be used.
pub fn parse_cores(text: &str, allowed: &[usize]) -> Result<Vec<usize>, CoresError> {
    let syntax = || CoresError::Syntax(text.to_owned());
    let number = |digits: &str| -> Result<usize, CoresError> {
        let plain = !digits.is_empty() && digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit());
        if plain { digits.parse().map_err(|_| syntax()) } else { Err(syntax()) }
    };
    let mut seen = BTreeSet::new();
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(syntax());
        }
        for cpu in first..=last {
            if !allowed.contains(&cpu) {
                return Err(CoresError::NotAllowed { cpu, allowed: allowed.to_vec() });
            }
            if seen.insert(cpu) {
                cores.push(cpu);
            }
        }
    }
    Ok(cores)
}

/// Pin the calling thread. False when the system refuses; the thread then runs wherever it is put.
pub(crate) fn pin_current_thread(cpu: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
}

fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_are_taken_and_mistakes_are_named() {
        let allowed = [0, 1, 2, 3, 5];
        assert_eq!(parse_cores("0,2-3", &allowed), Ok(vec![0, 2, 3]));
        assert_eq!(parse_cores("3,0-1,3", &allowed), Ok(vec![3, 0, 1]));
        for bad in ["", "a", "1-", "-1", "3-2", "1,,2", "0x1", "1 ", "999999999999"] {
            assert!(matches!(parse_cores(bad, &allowed), Err(CoresError::Syntax(_))), "{bad:?}");
        }
        let refused = parse_cores("2-5", &allowed).unwrap_err();
        assert_eq!(refused.to_string(), "CPU 4 is not available to this process (it may use 0,1,2,3,5)");
    }
}
