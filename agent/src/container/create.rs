//! Makes a container: its root is mounted and its first process waits for the start.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::{
    fs::{FileType, OFlags, fstat},
    io::Errno,
    mount::MountAttrFlags,
};
use tokio::{sync::watch, time::timeout};

use super::{
    cgroup::Cgroup,
    engine::Engine,
    error::{ContainerError, step},
    launch::{
        ProcessPlan, devices,
        first::{self, Birthplace, FirstPlan, Made},
        report::Report,
    },
    mount::{
        attach::open_within,
        standard::{self, Source},
    },
    pod_init::PodInit,
    process::{Process, Supervision},
    process_io::ProcessIo,
    root_path::RootDirectory,
    sandbox::{SHM, Sandbox},
    spec::{ContainerSpec, PidNamespace},
    state::{Container, Phase, Starter, locked},
    user::{self, ResolvedUser, WantedUser},
};
use crate::{
    init::log,
    io::{registry::ProcessName, terminal::Terminal},
    stats::writable_layer::LayerUsage,
    storage::{
        filesystem, image_tree::ImageTree, layers::Layer, overlay::Overlay, scratch::WritableLayer, tree,
    },
    sys::device_filter,
};

/// Where the roots of containers are in the agent's tree.
const CONTAINERS: &str = "/run/containers";

/// Where the images are that containers see beside their own.
const IMAGES: &str = "/run/images";

/// How long a child that has reported its failure may take to end.
const END: Duration = Duration::from_secs(10);

/// Where the root of container `id` is mounted.
pub fn rootfs_place(id: &str) -> PathBuf {
    Path::new(CONTAINERS).join(id)
}

impl Engine {
    /// Creates a container. Where it fails nothing of it stays.
    pub async fn create(
        &self,
        mut spec: ContainerSpec,
        sandbox: &Sandbox,
    ) -> Result<ResolvedUser, ContainerError> {
        let reservation = self.table.reserve(&spec.id)?;
        let layers = self.layers.use_all(&spec.layers, &self.reaper).await?;
        let uppermost = layers.last().map(Layer::path).unwrap_or_default();
        let writable = WritableLayer::create(&spec.id, &uppermost)?;
        let mut unfinished = Unfinished::default();
        unfinished.trees.push(writable.directory().to_owned());
        let place = rootfs_place(&spec.id);
        fs::create_dir_all(&place).map_err(step("make the place of the root file system"))?;
        unfinished.directories.push(place.clone());
        let root = Overlay::mount(layers, Some(&writable), &place)?;
        let user = resolve_user(spec.process.user.as_ref(), root.path())?;
        // Until the first process has bound what it needs of them.
        let _images = self.mount_images(&mut spec).await?;
        let cgroup = limited_cgroup(&spec)?;
        let devpts = make_devpts()?;

        let (exited, has_exited) = watch::channel(false);
        let io = ProcessIo::make(&spec.process, &devpts, user.uid, &has_exited)?;
        let terminal = io.terminal.as_ref().map(Terminal::name);
        let mut mounts = standard::mounts(
            spec.privileged,
            spec.readonly_rootfs,
            SHM,
            sandbox.files(),
            &spec.mounts,
        );
        mounts.extend(spec.mounts);
        let plan = FirstPlan {
            process: ProcessPlan::new(&spec.process, user.clone()),
            rootfs: root.path(),
            mounts,
            masked_paths: &spec.masked_paths,
            readonly_paths: &spec.readonly_paths,
            readonly_rootfs: spec.readonly_rootfs,
            privileged: spec.privileged,
            uts: sandbox.uts(),
            ipc: sandbox.ipc(),
            devpts: devpts.as_fd(),
            terminal: terminal.transpose().map_err(step("name the terminal"))?,
            streams: io.child,
        };
        let Made {
            child,
            mut reports,
            gate,
        } = self.make_first(plan, &cgroup, &spec.pid_namespace)?;
        let end = self.reaper.track(child.pid);
        match reports.next().await.map_err(step("hear of the first process"))? {
            Some(Report::Prepared) => {}
            failed => {
                // It ends by itself; what is mounted and made can only go when it has.
                let _ended = timeout(END, end).await;
                return Err(match failed {
                    Some(Report::Failed(failure)) => failure.into(),
                    _ => ContainerError::DiedEarly,
                });
            }
        }

        self.registry.add_container(&spec.id);
        let first = Process::supervise(
            ProcessName {
                container: spec.id.clone(),
                exec: String::new(),
            },
            child,
            io.streams,
            io.terminal,
            &self.registry,
            Supervision {
                end,
                cgroup: cgroup.clone(),
                ends_group: true,
                timeout: None,
                memory: cgroup.clone(),
                // The group is new: a process that is killed while it is prepared counts as well.
                oom_kills_before: 0,
                exited,
            },
        );
        unfinished.finish();
        reservation.fill(Arc::new(Container {
            id: spec.id,
            spec: spec.process,
            user: user.clone(),
            cgroup,
            first,
            starter: Mutex::new(Some(Starter { gate, reports })),
            execs: Mutex::default(),
            devpts,
            root: Mutex::new(Some(root)),
            writable,
            usage: LayerUsage::default(),
            changing: tokio::sync::Mutex::default(),
        }));
        Ok(user)
    }

    /// Mounts the images that the container sees beside its own, and says in its mounts where they are.
    async fn mount_images(&self, spec: &mut ContainerSpec) -> Result<Vec<ImageTree>, ContainerError> {
        let mut trees = Vec::new();
        for (index, mount) in spec.mounts.iter_mut().enumerate() {
            let Source::Image { layers, path } = &mount.source else {
                continue;
            };
            let layers = self.layers.use_all(layers, &self.reaper).await?;
            let place = Path::new(IMAGES).join(format!("{}-{index}", spec.id));
            let tree = ImageTree::mount(layers, &place)?;
            let absent = |source: io::Error| ContainerError::NotInImage {
                destination: mount.destination.clone(),
                path: path.clone(),
                source,
            };
            let root = RootDirectory::open(&tree.path()).map_err(absent)?;
            open_within(&root, path).map_err(|errno| absent(errno.into()))?;
            mount.source = Source::Within {
                root: tree.path(),
                path: path.clone(),
            };
            trees.push(tree);
        }
        Ok(trees)
    }

    fn make_first(
        &self,
        plan: FirstPlan<'_>,
        cgroup: &Cgroup,
        namespace: &PidNamespace,
    ) -> Result<Made, ContainerError> {
        let start = step("start the container's first process");
        match namespace {
            PidNamespace::Container => first::make(plan, cgroup, Birthplace::New).map_err(start),
            PidNamespace::Pod => {
                let mut pod_init = locked(&self.pod_init);
                let init = match pod_init.take() {
                    Some(init) => init,
                    None => PodInit::start(&self.reaper).map_err(step("start the pod's init process"))?,
                };
                let init = pod_init.insert(init);
                first::make(plan, cgroup, Birthplace::Of(init.pidfd())).map_err(start)
            }
            PidNamespace::Target(id) => {
                let target = self.table.get(id)?;
                target.must_be(Phase::Running, "joined by another container")?;
                first::make(plan, cgroup, Birthplace::Of(target.first.pidfd())).map_err(start)
            }
        }
    }
}

/// What is made on disk before the container is there, removed again if it does not come to that.
#[derive(Debug, Default)]
struct Unfinished {
    trees: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Unfinished {
    fn finish(mut self) {
        self.trees.clear();
        self.directories.clear();
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // No program has run in it, so what there is are a few mount points: no work for a child process.
        let trees = self.trees.iter().map(|path| (path, tree::remove(path)));
        let directories = self.directories.iter().map(|path| (path, fs::remove_dir(path)));
        for (path, result) in trees.chain(directories) {
            if let Err(error) = result {
                log::error!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

fn limited_cgroup(spec: &ContainerSpec) -> Result<Arc<Cgroup>, ContainerError> {
    let cgroup = Cgroup::of_container(&spec.id)?;
    for (file, value) in &spec.resources.files {
        cgroup.set(file, value)?;
    }
    if !spec.privileged {
        device_filter::attach(cgroup.fd(), &devices::allowed())
            .map_err(step("restrict the container's devices"))?;
    }
    Ok(Arc::new(cgroup))
}

fn make_devpts() -> Result<OwnedFd, ContainerError> {
    filesystem::create(
        "devpts",
        &[
            ("source", Some("devpts")),
            ("ptmxmode", Some("0666")),
            ("mode", Some("0620")),
            // tty, in every distribution.
            ("gid", Some("5")),
        ],
        MountAttrFlags::empty(),
    )
    .map_err(ContainerError::Devpts)
}

/// Who `wanted` is in the files of the root at `root`.
pub(super) fn resolve_user(wanted: Option<&WantedUser>, root: &Path) -> Result<ResolvedUser, ContainerError> {
    let read = || -> io::Result<(Vec<u8>, Vec<u8>)> {
        let root = RootDirectory::open(root)?;
        Ok((
            read_file(&root, b"/etc/passwd")?,
            read_file(&root, b"/etc/group")?,
        ))
    };
    let (passwd, group) = read().map_err(step("read the image's users"))?;
    Ok(user::resolve(
        wanted.unwrap_or(&WantedUser::default()),
        &passwd,
        &group,
    )?)
}

/// Reads a file that the image made: it may be missing, a link to anywhere, or something that blocks its reader.
fn read_file(root: &RootDirectory, path: &[u8]) -> io::Result<Vec<u8>> {
    let file = match root.open_existing(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(Vec::new()),
        Err(errno) => return Err(errno.into()),
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Ok(Vec::new());
    }
    let mut contents = Vec::new();
    let most = u64::try_from(user::FILE_BYTES).unwrap_or(u64::MAX);
    File::from(file).take(most).read_to_end(&mut contents)?;
    Ok(contents)
}
