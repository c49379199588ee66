//! Options of a mount by the names that mount(8) and the OCI runtime specification (config.md, "Linux mount options")
//! give them.

use rustix::mount::{MountAttrFlags, MountPropagationFlags};

use crate::sys::mount_attributes::MountChange;

/// How much of a source is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// The one mount.
    Mount,
    /// The mount and all below it.
    Tree,
}

/// The options of one mount, told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Attributes of the mount itself.
    pub mount: MountChange,
    /// Attributes of the mount and all below it.
    pub tree: MountChange,
    /// Set for a bind mount.
    pub bind: Option<Bind>,
    /// What the file system itself understands.
    pub data: Vec<(String, Option<String>)>,
}

/// An option that cannot be honoured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A bind mount takes options of the mount only.
    #[error("a bind mount has no option {0:?}")]
    NotForBind(String),
    /// It would change the mount's source on the host's side.
    #[error("mount option {0:?} is not supported in a guest")]
    Unsupported(String),
}

/// Sorts `options` out; `is_bind` where the mount's type says that it is one.
pub fn parse(options: &[String], is_bind: bool) -> Result<MountOptions, OptionError> {
    let mut parsed = MountOptions {
        bind: is_bind.then_some(Bind::Mount),
        ..MountOptions::default()
    };
    for option in options {
        match option.as_str() {
            "" | "defaults" => {}
            "bind" => parsed.bind = parsed.bind.or(Some(Bind::Mount)),
            "rbind" => parsed.bind = Some(Bind::Tree),
            "remount" | "tmpcopyup" | "idmap" | "ridmap" => {
                return Err(OptionError::Unsupported(option.clone()));
            }
            name => {
                if let Some(propagation) = propagation(name) {
                    parsed.change(name).propagation = propagation;
                } else if let Some(attribute) = attribute(name) {
                    attribute.apply(parsed.change(name));
                } else {
                    parsed.data.push(match name.split_once('=') {
                        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                        None => (name.to_owned(), None),
                    });
                }
            }
        }
    }
    if let (Some(_), Some((key, _))) = (parsed.bind, parsed.data.first()) {
        return Err(OptionError::NotForBind(key.clone()));
    }
    Ok(parsed)
}

impl MountOptions {
    /// Which of the two changes the option `name` belongs to: names of those for a whole tree begin with an `r`.
    fn change(&mut self, name: &str) -> &mut MountChange {
        let of_tree = matches!(
            name,
            "rprivate"
                | "rshared"
                | "rslave"
                | "runbindable"
                | "rro"
                | "rrw"
                | "rnosuid"
                | "rsuid"
                | "rnodev"
                | "rdev"
                | "rnoexec"
                | "rexec"
                | "rnoatime"
                | "ratime"
                | "rnodiratime"
                | "rdiratime"
                | "rrelatime"
                | "rnorelatime"
                | "rstrictatime"
                | "rnostrictatime"
                | "rnosymfollow"
                | "rsymfollow"
        );
        if of_tree { &mut self.tree } else { &mut self.mount }
    }
}

fn propagation(name: &str) -> Option<MountPropagationFlags> {
    Some(match name {
        "private" | "rprivate" => MountPropagationFlags::PRIVATE,
        "shared" | "rshared" => MountPropagationFlags::SHARED,
        "slave" | "rslave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" | "runbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    })
}

/// A flag of mount_setattr(2) that is set or cleared, or one of its kinds of access times.
#[derive(Clone, Copy)]
enum Attribute {
    Set(MountAttrFlags),
    Clear(MountAttrFlags),
    AccessTime(MountAttrFlags),
}

impl Attribute {
    fn apply(self, change: &mut MountChange) {
        match self {
            Self::Set(flag) => {
                change.set |= flag;
                change.clear -= flag;
            }
            Self::Clear(flag) => {
                change.clear |= flag;
                change.set -= flag;
            }
            // They are values of one field, which has to be cleared to be set.
            Self::AccessTime(value) => {
                change.clear |= MountAttrFlags::MOUNT_ATTR__ATIME;
                change.set -= MountAttrFlags::MOUNT_ATTR__ATIME;
                change.set |= value;
            }
        }
    }
}

fn attribute(name: &str) -> Option<Attribute> {
    use Attribute::{AccessTime, Clear, Set};
    let plain = match name {
        // "rro", but neither "ro" nor "rw" nor "relatime", is the tree's form of a name.
        "ro" | "rw" | "relatime" => name,
        name => name.strip_prefix('r').unwrap_or(name),
    };
    Some(match plain {
        "ro" => Set(MountAttrFlags::MOUNT_ATTR_RDONLY),
        "rw" => Clear(MountAttrFlags::MOUNT_ATTR_RDONLY),
        "nosuid" => Set(MountAttrFlags::MOUNT_ATTR_NOSUID),
        "suid" => Clear(MountAttrFlags::MOUNT_ATTR_NOSUID),
        "nodev" => Set(MountAttrFlags::MOUNT_ATTR_NODEV),
        "dev" => Clear(MountAttrFlags::MOUNT_ATTR_NODEV),
        "noexec" => Set(MountAttrFlags::MOUNT_ATTR_NOEXEC),
        "exec" => Clear(MountAttrFlags::MOUNT_ATTR_NOEXEC),
        "nodiratime" => Set(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        "diratime" => Clear(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => Set(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => Clear(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => AccessTime(MountAttrFlags::MOUNT_ATTR_NOATIME),
        "strictatime" => AccessTime(MountAttrFlags::MOUNT_ATTR_STRICTATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => {
            AccessTime(MountAttrFlags::MOUNT_ATTR_RELATIME)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str], is_bind: bool) -> Result<MountOptions, OptionError> {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        parse(&options, is_bind)
    }

    #[test]
    fn attributes_propagation_and_data_are_told_apart() {
        let options = parsed(
            &["nosuid", "noexec", "mode=755", "size=64k", "quiet", "rslave"],
            false,
        )
        .unwrap();
        assert_eq!(
            options.mount.set,
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC
        );
        assert_eq!(options.tree.propagation, MountPropagationFlags::DOWNSTREAM);
        assert!(options.mount.propagation.is_empty());
        assert_eq!(
            options.data,
            [
                ("mode".to_owned(), Some("755".to_owned())),
                ("size".to_owned(), Some("64k".to_owned())),
                ("quiet".to_owned(), None)
            ]
        );
        assert_eq!(options.bind, None);
    }

    #[test]
    fn names_for_a_tree_are_not_mistaken_for_names_that_begin_with_an_r() {
        let options = parsed(&["rro", "relatime"], true).unwrap();
        assert_eq!(options.tree.set, MountAttrFlags::MOUNT_ATTR_RDONLY);
        assert_eq!(options.mount.clear, MountAttrFlags::MOUNT_ATTR__ATIME);
        let options = parsed(&["rw", "ro"], true).unwrap();
        assert_eq!(options.mount.set, MountAttrFlags::MOUNT_ATTR_RDONLY);
        assert!(options.tree.is_empty());
        assert_eq!(
            parsed(&["rrw"], true).unwrap().tree.clear,
            MountAttrFlags::MOUNT_ATTR_RDONLY
        );
    }

    #[test]
    fn the_last_of_contrary_options_wins() {
        let options = parsed(&["ro", "rw", "exec", "noexec", "noatime", "strictatime"], true).unwrap();
        assert_eq!(
            options.mount.set,
            MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_STRICTATIME
        );
        assert!(options.mount.clear.contains(MountAttrFlags::MOUNT_ATTR_RDONLY));
    }

    #[test]
    fn a_bind_is_one_by_its_type_or_its_options() {
        assert_eq!(parsed(&[], true).unwrap().bind, Some(Bind::Mount));
        assert_eq!(parsed(&["rbind"], true).unwrap().bind, Some(Bind::Tree));
        assert_eq!(parsed(&["rbind", "bind"], false).unwrap().bind, Some(Bind::Tree));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        assert_eq!(
            parsed(&["size=5m"], true),
            Err(OptionError::NotForBind("size".to_owned()))
        );
        assert_eq!(
            parsed(&["idmap"], true),
            Err(OptionError::Unsupported("idmap".to_owned()))
        );
    }
}
