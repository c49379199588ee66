//! What a process costs the node: memory and processor time, as procfs tells it (proc(5)).

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// Memory of a process, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Pages that are there, shared ones in full.
    pub resident: f64,
    /// Pages that are there, each divided by the number of processes that map it.
    pub proportional: f64,
}

impl Memory {
    /// All memory of the process `pid`.
    pub fn of(pid: i32) -> Result<Self> {
        let text = read(pid, "smaps_rollup")?;
        Self::sum(text.lines()).with_context(|| format!("/proc/{pid}/smaps_rollup has no sums"))
    }

    /// Memory of those mappings of the process `pid` whose line contains `name`.
    pub fn of_mappings(pid: i32, name: &str) -> Result<Self> {
        let text = read(pid, "smaps")?;
        let mut wanted = false;
        let fields = text.lines().filter(|line| {
            // A mapping's own line starts with its addresses; those of its fields follow.
            if line.split(' ').next().is_some_and(|word| word.contains('-')) {
                wanted = line.contains(name);
            }
            wanted
        });
        Self::sum(fields).with_context(|| format!("process {pid} has no mapping of {name}"))
    }

    fn sum<'l>(lines: impl Iterator<Item = &'l str>) -> Option<Self> {
        let (mut resident, mut proportional, mut found) = (0.0, 0.0, false);
        for line in lines {
            let mut words = line.split_whitespace();
            let sum = match words.next() {
                Some("Rss:") => &mut resident,
                Some("Pss:") => &mut proportional,
                _ => continue,
            };
            *sum += words.next()?.parse::<f64>().ok()? / 1024.0;
            found = true;
        }
        found.then_some(Self {
            resident,
            proportional,
        })
    }
}

/// Processor time that the process `pid` has used, its ended threads included.
pub fn processor_time(pid: u32) -> Result<Duration> {
    times(&fs::read_to_string(format!("/proc/{pid}/stat"))?, 0)
}

/// Processor time that the process `pid` and those of its children that have ended have used.
pub fn processor_time_of_family(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(times(&stat, 0)? + times(&stat, 2)?)
}

/// Children of the process `pid` that have not ended.
pub fn children(pid: i32) -> Result<Vec<i32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while it is looked at.
        let list = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        children.extend(
            list.split_whitespace()
                .filter_map(|word| word.parse::<i32>().ok()),
        );
    }
    Ok(children)
}

/// Processor time that the ended children of this process have used.
pub fn processor_time_of_children() -> Result<Duration> {
    times(&fs::read_to_string("/proc/self/stat")?, 2)
}

/// User and system time of /proc/PID/stat: its fields 14 and 15, or those `after` them.
fn times(stat: &str, after: usize) -> Result<Duration> {
    // The second field is a name in parentheses and may hold anything; the third is the first word after it.
    let (_, fields) = stat.rsplit_once(')').context("a stat file names its process")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11 + after)
        .take(2)
        .map(|word| word.parse::<u64>().unwrap_or_default())
        .sum();
    // USER_HZ is 100 on x86.
    Ok(Duration::from_millis(ticks * 10))
}

fn read(pid: i32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_process_only_the_named_mappings_are_counted() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let whole = Memory::of(pid).unwrap();
        let stack = Memory::of_mappings(pid, "[stack]").unwrap();
        assert!(stack.resident > 0.0 && stack.resident < whole.resident);
        assert!(Memory::of_mappings(pid, "no such mapping").is_err());
    }

    #[test]
    fn children_are_found_until_they_have_ended() {
        let pid = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let number = i32::try_from(child.id()).unwrap();
        assert!(children(i32::try_from(pid).unwrap()).unwrap().contains(&number));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children(i32::try_from(pid).unwrap()).unwrap().contains(&number));
    }

    #[test]
    fn processor_times_stand_behind_the_name() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 20 30 0 0";
        assert_eq!(times(stat, 0).unwrap(), Duration::from_secs(2));
        assert_eq!(times(stat, 2).unwrap(), Duration::from_millis(500));
    }
}
