//! An image as a disk, read by sfdisk and by libblkid, and its layers stacked as a guest stacks them.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bulkhead_runtime::image::ImageDisk;
use serde_json::json;

use crate::build::{Archive, BuiltLayer, push};
use crate::compare::tree;
use crate::host::{Host, pull};
use crate::registry::Registry;
use crate::tools::{Mounted, run, text};

/// Writes the disk as a VM would see it to one file.
pub fn write_disk(disk: ImageDisk, path: &Path) {
    let mut whole = File::create(path).unwrap();
    for segment in disk.segments {
        let mut file = File::from(segment.file);
        let copied = std::io::copy(&mut file, &mut whole).unwrap();
        assert_eq!(copied, segment.length);
        assert_eq!(whole.stream_position().unwrap() % 4096, 0);
        file.seek(SeekFrom::Start(0)).unwrap();
        assert!(
            std::io::Write::write(&mut file, b"x").is_err(),
            "a segment can be written to"
        );
    }
}

/// The layers of a disk, stacked by overlayfs. Unmounted when dropped.
pub struct Stacked {
    pub path: PathBuf,
    _layers: Vec<Mounted>,
}

impl Stacked {
    /// Mounts the partitions of the disk in `disk`, the last one on top, below `directory`.
    pub fn of(disk: &Path, directory: &Path) -> Self {
        let listed: serde_json::Value =
            serde_json::from_str(&run("fdisk", "sfdisk", &["--json", text(disk)])).unwrap();
        let table = &listed["partitiontable"];
        let mut layers = Vec::new();
        for (index, partition) in table["partitions"].as_array().unwrap().iter().enumerate() {
            let blob = directory.join(format!("partition-{index}"));
            let at = |key: &str| partition[key].as_u64().unwrap() * 512;
            let mut source = File::open(disk).unwrap();
            source.seek(SeekFrom::Start(at("start"))).unwrap();
            let mut part = std::io::Read::take(source, at("size"));
            std::io::copy(&mut part, &mut File::create(&blob).unwrap()).unwrap();
            layers.push(Mounted::at(&blob, directory.join(format!("layer-{index}"))));
        }
        let path = directory.join("stacked");
        fs::create_dir(&path).unwrap();
        // Overlayfs wants two layers at least.
        let empty = directory.join("empty");
        fs::create_dir(&empty).unwrap();
        let lower: Vec<_> = layers
            .iter()
            .rev()
            .map(|layer| text(&layer.path))
            .chain([text(&empty)])
            .collect();
        let options = format!("ro,lowerdir={}", lower.join(":"));
        run(
            "mount",
            "mount",
            &["-t", "overlay", "-o", &options, "none", text(&path)],
        );
        Self {
            path,
            _layers: layers,
        }
    }
}

impl Drop for Stacked {
    fn drop(&mut self) {
        run("mount", "umount", &[text(&self.path)]);
    }
}

#[tokio::test]
async fn the_disk_of_an_image_has_a_partition_for_each_layer() {
    let registry = Registry::start().await;
    let host = Host::new();
    let store = host.open();
    for count in [1, 3, 127] {
        let layer = |i: usize| {
            let archive = Archive::new()
                .file(&format!("layer-{i}"), vec![b'x'; i * 100])
                .file("top", format!("{i}"));
            BuiltLayer::gzip(archive.finish())
        };
        // The lowest layer again in the middle, as builders do with empty ones.
        let mut layers: Vec<_> = (0..count).map(layer).collect();
        if count == 3 {
            layers[1] = layer(0);
        }
        push(&registry, "a", &format!("{count}"), &layers, json!({}));
        let id = pull(&store, &format!("{}/a:{count}", registry.name()))
            .await
            .unwrap();
        let image = store.resolve(&id.to_string()).unwrap();
        let disk = store.disk(&image).unwrap();
        assert_eq!(
            (disk.partitions as usize, disk.segments.len()),
            (count, count + 2)
        );

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        write_disk(disk, &path);
        let verified = run("fdisk", "sfdisk", &["--verify", text(&path)]);
        assert!(verified.contains("No errors detected"), "{verified}");
        assert!(!verified.to_lowercase().contains("misaligned"), "{verified}");
        // libblkid, what udev and mount go by, reads it too.
        let seen = run(
            "util-linux",
            "partx",
            &["--show", "--noheadings", "--output", "NR", text(&path)],
        );
        assert_eq!(seen.lines().count(), count, "{seen}");
        if count > 3 {
            continue;
        }
        let stacked = Stacked::of(&path, directory.path());
        assert_eq!(
            fs::read_to_string(stacked.path.join("top")).unwrap(),
            format!("{}", count - 1)
        );
    }
}

#[tokio::test]
async fn a_layer_that_hides_all_others_is_the_lowest_on_the_disk() {
    let registry = Registry::start().await;
    let lower = BuiltLayer::gzip(Archive::new().file("lower", "").finish());
    let hiding = BuiltLayer::gzip(Archive::new().file("upper", "").file(".wh..wh..opq", "").finish());
    let top = BuiltLayer::gzip(Archive::new().file("top", "").finish());
    push(&registry, "a", "latest", &[lower, hiding, top], json!({}));
    let host = Host::new();
    let store = host.open();
    let id = pull(&store, &format!("{}/a", registry.name())).await.unwrap();
    let disk = store.disk(&store.resolve(&id.to_string()).unwrap()).unwrap();
    assert_eq!(disk.partitions, 2);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    write_disk(disk, &path);
    let stacked = Stacked::of(&path, directory.path());
    let names: Vec<_> = tree(&stacked.path).into_keys().collect();
    assert_eq!(names, ["", "top", "upper"].map(PathBuf::from));
}
