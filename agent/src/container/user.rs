//! Who a process is: resolved in the /etc/passwd and /etc/group of the image, both of which are hostile text.

use std::collections::BTreeSet;

/// Most bytes of either file that are read.
pub const FILE_BYTES: usize = 4 * 1024 * 1024;

/// Most groups a process can be in (Linux's NGROUPS_MAX).
const GROUPS: usize = 65_536;

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedUser {
    /// By number.
    pub uid: Option<u32>,
    /// By name, or a number in decimal; empty for none.
    pub username: String,
    /// Primary group by number.
    pub gid: Option<u32>,
    /// Primary group by name, or a number in decimal; empty for none.
    pub groupname: String,
    /// Further groups.
    pub supplemental_groups: Vec<u32>,
    /// Whether the groups that name the user in /etc/group are added.
    pub merge_image_groups: bool,
}

/// What it comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Every group, the primary one included, ascending, without doubles.
    pub groups: Vec<u32>,
    /// The home directory of the passwd entry, or "/".
    pub home: String,
}

/// There is no such user.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The name is not in the image.
    #[error("user {0:?} is not in the image's /etc/passwd; use a name that is, or a number")]
    UnknownUser(String),
    /// The name is not in the image.
    #[error("group {0:?} is not in the image's /etc/group; use a name that is, or a number")]
    UnknownGroup(String),
    /// Number and name contradict.
    #[error("both user {uid} and user name {username:?} are given; give one of them")]
    Both {
        /// Given number.
        uid: u32,
        /// Given name.
        username: String,
    },
    /// More groups than a process can have.
    #[error("the process would be in {0} groups, and Linux takes {GROUPS}")]
    TooManyGroups(usize),
}

/// Resolves `wanted` in the contents of the two files; an image without one has it empty.
pub fn resolve(wanted: &WantedUser, passwd: &[u8], group: &[u8]) -> Result<ResolvedUser, UserError> {
    let (uid, entry) = match (wanted.uid, wanted.username.as_str()) {
        (Some(uid), "") => (uid, find_passwd(passwd, |entry| entry.uid == uid)),
        (None, "") => (0, find_passwd(passwd, |entry| entry.uid == 0)),
        (None, name) => {
            if let Some(entry) = find_passwd(passwd, |entry| entry.name == name.as_bytes()) {
                (entry.uid, Some(entry))
            } else {
                let uid = number(name.as_bytes()).ok_or_else(|| UserError::UnknownUser(name.to_owned()))?;
                (uid, find_passwd(passwd, |entry| entry.uid == uid))
            }
        }
        (Some(uid), name) => {
            return Err(UserError::Both {
                uid,
                username: name.to_owned(),
            });
        }
    };
    let gid = match (wanted.gid, wanted.groupname.as_str()) {
        (Some(gid), _) => gid,
        (None, "") => entry.as_ref().map_or(0, |entry| entry.gid),
        (None, name) => find_group(group, name.as_bytes())
            .or_else(|| number(name.as_bytes()))
            .ok_or_else(|| UserError::UnknownGroup(name.to_owned()))?,
    };

    let mut groups: BTreeSet<u32> = wanted.supplemental_groups.iter().copied().collect();
    groups.insert(gid);
    if let Some(entry) = &entry
        && wanted.merge_image_groups
    {
        groups.extend(groups_naming(group, entry.name));
    }
    if groups.len() > GROUPS {
        return Err(UserError::TooManyGroups(groups.len()));
    }
    let home = entry
        .map(|entry| String::from_utf8_lossy(entry.home).into_owned())
        .filter(|home| home.starts_with('/') && !home.contains('\0'));
    Ok(ResolvedUser {
        uid,
        gid,
        groups: groups.into_iter().collect(),
        home: home.unwrap_or_else(|| "/".to_owned()),
    })
}

/// A line of passwd(5).
struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// The first entry that `matches`; lines that are no entries are passed over.
fn find_passwd<'a>(passwd: &'a [u8], matches: impl Fn(&PasswdEntry<'a>) -> bool) -> Option<PasswdEntry<'a>> {
    lines(passwd)
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            Some(PasswdEntry {
                name: fields.next().filter(|name| !name.is_empty())?,
                uid: fields.nth(1).and_then(number)?,
                gid: fields.next().and_then(number)?,
                home: fields.nth(1).unwrap_or_default(),
            })
        })
        .find(|entry| matches(entry))
}

/// A line of group(5): name, number and members.
fn group_entries(group: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1).and_then(number)?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn find_group(group: &[u8], wanted: &[u8]) -> Option<u32> {
    group_entries(group)
        .find(|(name, ..)| *name == wanted)
        .map(|(_, gid, _)| gid)
}

fn groups_naming(group: &[u8], user: &[u8]) -> impl Iterator<Item = u32> {
    group_entries(group)
        .filter(move |(.., members)| {
            members
                .split(|byte| *byte == b',')
                .any(|member| member.trim_ascii() == user)
        })
        .map(|(_, gid, _)| gid)
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

/// A decimal number without sign, as both files and a user's name may have it.
fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Linux takes the largest number for "no change".
    std::str::from_utf8(digits)
        .ok()?
        .parse()
        .ok()
        .filter(|number| *number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        daemon:x:1:1::/usr/sbin:/bin/false\n\
        broken line\n\
        :x:5:5::/:\n\
        huge:x:99999999999:1::/:\n\
        app:x:1000:1001::/home/app:/bin/sh\n\
        1234:x:77:78::/:\n\
        nohome:x:50:50\n";
    const GROUP: &[u8] = b"root:x:0:\n\
        wheel:x:10:root, app\n\
        app:x:1001:\n\
        video:x:44:app,daemon\n\
        bad:x:-1:app\n\
        short\n";

    fn named(name: &str) -> WantedUser {
        WantedUser {
            username: name.to_owned(),
            ..WantedUser::default()
        }
    }

    fn groups_of(wanted: &WantedUser) -> Vec<u32> {
        resolve(wanted, PASSWD, GROUP).unwrap().groups
    }

    #[test]
    fn nobody_asked_for_is_root() {
        assert_eq!(
            resolve(&WantedUser::default(), PASSWD, GROUP).unwrap(),
            ResolvedUser {
                uid: 0,
                gid: 0,
                groups: vec![0],
                home: "/root".to_owned()
            }
        );
        assert_eq!(
            resolve(&WantedUser::default(), b"", b"").unwrap().home,
            "/",
            "an image without users"
        );
    }

    #[test]
    fn a_name_is_looked_up_before_it_is_taken_for_a_number() {
        let app = resolve(&named("app"), PASSWD, GROUP).unwrap();
        assert_eq!((app.uid, app.gid, app.home.as_str()), (1000, 1001, "/home/app"));
        assert_eq!(resolve(&named("1234"), PASSWD, GROUP).unwrap().uid, 77);
        let unlisted = resolve(&named("4321"), PASSWD, GROUP).unwrap();
        assert_eq!((unlisted.uid, unlisted.gid), (4321, 0));
        let by_number = resolve(&named("1000"), PASSWD, GROUP).unwrap();
        assert_eq!((by_number.uid, by_number.gid), (1000, 1001));
    }

    #[test]
    fn an_unknown_name_is_told_by_name() {
        for name in ["nobody", "-1", "+5", "4294967295", "99999999999", "huge", "app "] {
            assert_eq!(
                resolve(&named(name), PASSWD, GROUP),
                Err(UserError::UnknownUser(name.to_owned()))
            );
        }
        let mut wanted = named("app");
        wanted.groupname = "nogroup".to_owned();
        assert_eq!(
            resolve(&wanted, PASSWD, GROUP),
            Err(UserError::UnknownGroup("nogroup".to_owned()))
        );
    }

    #[test]
    fn the_primary_group_is_the_given_one_or_that_of_the_entry() {
        let mut wanted = named("app");
        wanted.gid = Some(7);
        assert_eq!(resolve(&wanted, PASSWD, GROUP).unwrap().gid, 7);
        wanted.gid = None;
        wanted.groupname = "video".to_owned();
        assert_eq!(resolve(&wanted, PASSWD, GROUP).unwrap().gid, 44);
        wanted.groupname = "4711".to_owned();
        assert_eq!(resolve(&wanted, PASSWD, GROUP).unwrap().gid, 4711);
    }

    #[test]
    fn groups_are_merged_sorted_and_single() {
        let mut wanted = named("app");
        assert_eq!(groups_of(&wanted), [1001]);
        wanted.supplemental_groups = vec![3000, 44, 3000];
        assert_eq!(groups_of(&wanted), [44, 1001, 3000]);
        wanted.merge_image_groups = true;
        assert_eq!(groups_of(&wanted), [10, 44, 1001, 3000]);
        let by_number = WantedUser {
            uid: Some(1000),
            merge_image_groups: true,
            ..WantedUser::default()
        };
        assert_eq!(groups_of(&by_number), [10, 44, 1001]);
    }

    #[test]
    fn number_and_name_together_are_refused() {
        let mut wanted = named("app");
        wanted.uid = Some(5);
        assert!(matches!(
            resolve(&wanted, PASSWD, GROUP),
            Err(UserError::Both { uid: 5, .. })
        ));
    }
}
