//! What a host does with the agent: requests, streams, and a container run to its end.

use std::{collections::HashMap, io};

use bulkhead_proto::agent::{
    self, STREAM_PORT, StreamHeader, StreamKind, StreamReply, agent_client::AgentClient, exit_status::How,
    wire,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    disk,
    guest::{self, SharedGuest},
};

/// A guest whose pod is configured, and a control connection to it.
pub struct Host {
    pub guest: SharedGuest,
    pub client: AgentClient<Channel>,
}

/// A process that has ended: what it wrote and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    pub status: agent::ExitStatus,
}

impl Ended {
    /// Its output, having exited with 0.
    pub fn ok(self) -> String {
        assert_eq!(
            self.status.how,
            Some(How::Exited(0)),
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        self.stdout
    }
}

/// The pod's configuration of most tests.
pub fn pod() -> agent::ConfigureSandboxRequest {
    agent::ConfigureSandboxRequest {
        hostname: "pod".to_owned(),
        scratch_disk: "scratch".to_owned(),
        resolv_conf: Some("nameserver 10.0.0.10\n".to_owned()),
        hosts: Some("127.0.0.1 localhost\n".to_owned()),
        etc_hostname: Some("pod\n".to_owned()),
        ..agent::ConfigureSandboxRequest::default()
    }
}

/// A process that runs `script` in a shell, with what an unprivileged container may do.
pub fn shell(script: &str) -> agent::ProcessSpec {
    program(&["/bin/sh", "-c", script])
}

/// A process with output.
pub fn program(args: &[&str]) -> agent::ProcessSpec {
    let usual = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETGID",
        "SETUID",
        "SYS_CHROOT",
    ];
    let usual: Vec<String> = usual.iter().map(|name| (*name).to_owned()).collect();
    agent::ProcessSpec {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![b"PATH=/bin".to_vec()],
        stdout: true,
        stderr: true,
        capabilities: Some(agent::Capabilities {
            bounding: usual.clone(),
            permitted: usual.clone(),
            effective: usual,
            ..agent::Capabilities::default()
        }),
        ..agent::ProcessSpec::default()
    }
}

/// A container of the whole image.
pub fn container(id: &str, process: agent::ProcessSpec) -> agent::CreateContainerRequest {
    agent::CreateContainerRequest {
        container_id: id.to_owned(),
        layers: (1..=disk::LAYERS)
            .map(|partition| agent::Layer {
                disk: "image".to_owned(),
                partition,
            })
            .collect(),
        process: Some(process),
        ..agent::CreateContainerRequest::default()
    }
}

/// A bind mount.
pub fn bind(source: &str, destination: &str, options: &[&str]) -> agent::MountSpec {
    agent::MountSpec {
        r#type: "bind".to_owned(),
        source: source.to_owned(),
        destination: destination.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..agent::MountSpec::default()
    }
}

/// All capabilities that this process can give away.
pub fn all_capabilities() -> agent::Capabilities {
    let own = rustix::thread::capabilities(None).unwrap().effective;
    let names: Vec<String> = own.iter_names().map(|(name, _)| name.to_owned()).collect();
    agent::Capabilities {
        bounding: names.clone(),
        permitted: names.clone(),
        effective: names,
        ..agent::Capabilities::default()
    }
}

impl Host {
    pub async fn new(guest: SharedGuest) -> Self {
        if guest.is_to_be_configured() {
            return Self::with(guest, pod()).await;
        }
        let client = guest::client(&guest).await;
        Self { guest, client }
    }

    pub async fn with(guest: SharedGuest, pod: agent::ConfigureSandboxRequest) -> Self {
        let mut client = guest::client(&guest).await;
        client.configure_sandbox(pod).await.unwrap();
        Self { guest, client }
    }

    pub async fn create(
        &self,
        request: agent::CreateContainerRequest,
    ) -> Result<agent::ResolvedUser, Status> {
        let created = self.client.clone().create_container(request).await?;
        Ok(created.into_inner().user.unwrap())
    }

    pub async fn start(&self, id: &str) -> Result<agent::StartContainerResponse, Status> {
        let request = agent::StartContainerRequest {
            container_id: id.to_owned(),
        };
        Ok(self.client.clone().start_container(request).await?.into_inner())
    }

    pub async fn exec(
        &self,
        id: &str,
        exec: &str,
        process: agent::ProcessSpec,
        timeout_ns: u64,
    ) -> Result<agent::ExecProcessResponse, Status> {
        let request = agent::ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            process: Some(process),
            inherit: true,
            timeout_ns,
        };
        Ok(self.client.clone().exec_process(request).await?.into_inner())
    }

    pub async fn wait(&self, id: &str, exec: &str) -> Result<agent::ExitStatus, Status> {
        let request = agent::WaitProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
        };
        let response = self.client.clone().wait_process(request).await?.into_inner();
        Ok(response.status.unwrap())
    }

    pub async fn signal(&self, id: &str, exec: &str, signal: u32, all: bool) -> Result<(), Status> {
        let request = agent::SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal,
            all,
        };
        self.client.clone().signal_process(request).await.map(drop)
    }

    pub async fn acknowledge(&self, id: &str, exec: &str) -> Result<(), Status> {
        let request = agent::AcknowledgeExitRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
        };
        self.client.clone().acknowledge_exit(request).await.map(drop)
    }

    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = agent::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        self.client.clone().remove_container(request).await.map(drop)
    }

    pub async fn state(&self, id: &str) -> Option<agent::ContainerState> {
        let mut client = self.client.clone();
        let list = client.list_containers(agent::ListContainersRequest {});
        let containers = list.await.unwrap().into_inner().containers;
        containers.into_iter().find(|state| state.container_id == id)
    }

    pub async fn stats(&self, id: &str) -> agent::ContainerStats {
        let request = agent::StatsRequest {
            container_ids: vec![id.to_owned()],
            processes: true,
        };
        let response = self.client.clone().stats(request).await.unwrap().into_inner();
        response.containers.into_iter().next().unwrap()
    }

    /// Opens a stream of a process.
    pub async fn stream(
        &self,
        id: &str,
        exec: &str,
        kind: StreamKind,
        offset: u64,
    ) -> Result<UnixStream, String> {
        let mut stream = self.guest.connect(STREAM_PORT).await.unwrap();
        let header = StreamHeader {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            kind: kind.into(),
            offset,
            port: 0,
        };
        stream.write_all(&wire::encode(&header)).await.unwrap();
        let mut bytes = Vec::new();
        loop {
            if let Some((reply, _)) = wire::decode::<StreamReply>(&bytes).unwrap() {
                return if reply.refusal.is_empty() {
                    Ok(stream)
                } else {
                    Err(reply.refusal)
                };
            }
            bytes.push(stream.read_u8().await.unwrap());
        }
    }

    /// Runs a container to its end and removes it.
    pub async fn run(&self, request: agent::CreateContainerRequest) -> Ended {
        let id = request.container_id.clone();
        self.create(request).await.unwrap();
        let output = self.open_output(&id, "").await;
        self.start(&id).await.unwrap();
        let ended = self.finish(&id, "", output).await;
        self.remove(&id).await.unwrap();
        ended
    }

    /// Runs a shell script in a container of its own.
    pub async fn sh(&self, script: &str) -> Ended {
        self.run(container("sh", shell(script))).await
    }

    /// Creates and starts a container that waits to be killed.
    pub async fn start_idle(&self, request: agent::CreateContainerRequest) {
        let id = request.container_id.clone();
        let mut request = request;
        if let Some(process) = &mut request.process {
            process.stdout = false;
            process.stderr = false;
        }
        self.create(request).await.unwrap();
        self.start(&id).await.unwrap();
    }

    /// Runs an exec to its end.
    pub async fn run_exec(
        &self,
        id: &str,
        exec: &str,
        process: agent::ProcessSpec,
        timeout_ns: u64,
    ) -> Ended {
        let output = self.open_output(id, exec).await;
        self.exec(id, exec, process, timeout_ns).await.unwrap();
        self.finish(id, exec, output).await
    }

    /// Runs a shell script in a running container.
    pub async fn exec_sh(&self, id: &str, script: &str) -> Ended {
        let mut process = shell(script);
        process.capabilities = None;
        process.env = Vec::new();
        let ended = self.run_exec(id, "sh", process, 0).await;
        self.acknowledge(id, "sh").await.unwrap();
        ended
    }

    pub async fn open_output(&self, id: &str, exec: &str) -> [JoinHandle<io::Result<Vec<u8>>>; 2] {
        let stdout = self.stream(id, exec, StreamKind::Stdout, 0).await.unwrap();
        let stderr = self.stream(id, exec, StreamKind::Stderr, 0).await.unwrap();
        [
            tokio::spawn(read_all(stdout, 0)),
            tokio::spawn(read_all(stderr, 0)),
        ]
    }

    pub async fn finish(&self, id: &str, exec: &str, output: [JoinHandle<io::Result<Vec<u8>>>; 2]) -> Ended {
        let status = self.wait(id, exec).await.unwrap();
        let [stdout, stderr] = output;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended {
            stdout: text(stdout.await.unwrap().unwrap()),
            stderr: text(stderr.await.unwrap().unwrap()),
            status,
        }
    }
}

/// Removes every container of a guest.
pub async fn remove_all(guest: &SharedGuest) {
    let host = Host::new(guest.clone()).await;
    let mut client = host.client.clone();
    let list = client.list_containers(agent::ListContainersRequest {});
    for container in list.await.unwrap().into_inner().containers {
        host.remove(&container.container_id).await.unwrap();
    }
}

/// Reads an output stream to its end and acknowledges everything; `position` is where it begins.
pub async fn read_all(mut stream: UnixStream, mut position: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut part = vec![0; 64 * 1024];
    loop {
        let length = stream.read(&mut part).await?;
        if length == 0 {
            return Ok(bytes);
        }
        bytes.extend(&part[..length]);
        position += length as u64;
        stream.write_all(&position.to_le_bytes()).await?;
    }
}

/// Asserts code and a part of the message of a refusal.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, part: &str) {
    let status = result.expect_err("it should have been refused");
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(
        status.message().contains(part),
        "{:?} is not in {:?}",
        part,
        status.message()
    );
}

/// `NAME=value` lines as a map.
pub fn variables(text: &str) -> HashMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
