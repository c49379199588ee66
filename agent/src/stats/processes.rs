//! What is told by a look at processes: their open files and their limits.

use std::{fs, path::Path};

use bulkhead_proto::agent::{OpenFiles, SoftLimit, limits};

/// Descriptors and processes that one request may look at. The agent has one thread, which a container with a million
/// open files shall not keep busy; what is beyond is not counted.
#[derive(Debug)]
pub struct Budget {
    left: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: 32 * 1024 }
    }
}

impl Budget {
    fn spend(&mut self) -> bool {
        let any = self.left > 0;
        self.left = self.left.saturating_sub(1);
        any
    }
}

/// What the processes have open. One that ends meanwhile has nothing open.
pub fn open_files(processes: &[u32], budget: &mut Budget) -> OpenFiles {
    let mut open = OpenFiles::default();
    for process in processes {
        if !budget.spend() {
            break;
        }
        count(
            &Path::new("/proc").join(process.to_string()).join("fd"),
            budget,
            &mut open,
        );
    }
    open
}

fn count(directory: &Path, budget: &mut Budget, open: &mut OpenFiles) {
    let Ok(descriptors) = fs::read_dir(directory) else {
        return;
    };
    for descriptor in descriptors.filter_map(Result::ok) {
        if !budget.spend() {
            return;
        }
        open.descriptors += 1;
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        if target.as_os_str().as_encoded_bytes().starts_with(b"socket:") {
            open.sockets += 1;
        }
    }
}

/// The soft limits of a process, without those that it does not have.
pub fn soft_limits(process: u32) -> Vec<SoftLimit> {
    parse_limits(&fs::read_to_string(format!("/proc/{process}/limits")).unwrap_or_default())
}

/// /proc/PID/limits is a table (proc(5)): the name, which has spaces, then the soft limit, each padded with at least two
/// spaces or to the header's column.
fn parse_limits(table: &str) -> Vec<SoftLimit> {
    let Some(column) = table.lines().next().and_then(|header| header.find("Soft Limit")) else {
        return Vec::new();
    };
    let limit = |line: &str| {
        let (name, rest) = line.split_at_checked(column)?;
        let value = rest.split_whitespace().next()?.parse().ok()?;
        Some(SoftLimit {
            name: name.trim().to_owned(),
            value,
        })
    };
    table
        .lines()
        .skip(1)
        .filter_map(limit)
        .take(limits::SOFT_LIMITS)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn sockets_are_counted_among_open_files() {
        let own = std::process::id();
        let _pair = UnixStream::pair().unwrap();
        let open = open_files(&[own, u32::MAX], &mut Budget::default());
        assert!(open.sockets >= 2 && open.descriptors > open.sockets, "{open:?}");
        let cut = open_files(&[own], &mut Budget { left: 3 });
        assert_eq!(cut.descriptors, 2, "the process itself is one of three");
    }

    #[test]
    fn soft_limits_are_read_where_there_are_some() {
        let table = "Limit                     Soft Limit           Hard Limit           Units     \n\
                     Max cpu time              unlimited            unlimited            seconds   \n\
                     Max open files            1024                 524288               files     \n\
                     Max nice priority         0                    0                    \n";
        let limits = parse_limits(table);
        let shown: Vec<_> = limits
            .iter()
            .map(|limit| (limit.name.as_str(), limit.value))
            .collect();
        assert_eq!(shown, [("Max open files", 1024), ("Max nice priority", 0)]);
        assert!(parse_limits("").is_empty());
        assert!(!soft_limits(std::process::id()).is_empty());
    }
}
