//! `bulkhead logs --guest`: the log of the kernel in a pod's machine.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use bulkhead_proto::cri::{
    ContainerStatusRequest, PodSandboxStatusRequest, runtime_service_client::RuntimeServiceClient,
};
use serde_json::Value;
use tonic::{Code, transport::Channel};

use super::client::{ANSWER_BYTES, AdminError, connect};

/// The log of the kernel that a pod runs on, from its beginning as far as it is kept.
#[derive(Debug)]
pub struct GuestLog {
    path: PathBuf,
    /// Bytes that were read.
    offset: u64,
}

impl GuestLog {
    /// The log of the pod whose id, or that of one of its containers, begins with `id`.
    ///
    /// # Errors
    ///
    /// [`AdminError`].
    pub async fn of(socket: &Path, id: &str) -> Result<Self, AdminError> {
        let mut client =
            RuntimeServiceClient::new(connect(socket).await?).max_decoding_message_size(ANSWER_BYTES);
        let info = match pod_info(&mut client, id).await {
            Err(status) if status.code() == Code::NotFound => {
                let pod = pod_of_container(&mut client, id).await?;
                pod_info(&mut client, &pod).await?
            }
            info => info?,
        };
        let path = info
            .pointer("/machine/console")
            .and_then(Value::as_str)
            .ok_or_else(|| {
                AdminError::Refused(format!("the daemon does not say where the log of {id} is"))
            })?;
        Ok(Self {
            path: path.into(),
            offset: 0,
        })
    }

    /// What was written since the last look. The text is the guest's: what a terminal would act on is left out.
    ///
    /// # Errors
    ///
    /// When the file cannot be read: `NotFound` when its pod is gone.
    pub fn news(&mut self) -> io::Result<String> {
        let mut file = File::open(&self.path)?;
        // The file keeps the newest, so it may have become shorter; then what is in it may have been seen in part.
        if file.metadata()?.len() < self.offset {
            self.offset = 0;
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        let read = file.read_to_end(&mut bytes)?;
        self.offset += u64::try_from(read).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes);
        Ok(text
            .chars()
            .filter(|letter| !letter.is_control() || matches!(letter, '\n' | '\t'))
            .collect())
    }
}

async fn pod_info(client: &mut RuntimeServiceClient<Channel>, id: &str) -> Result<Value, tonic::Status> {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: id.to_owned(),
        verbose: true,
    };
    let mut info = client.pod_sandbox_status(request).await?.into_inner().info;
    Ok(info
        .remove("info")
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default())
}

async fn pod_of_container(
    client: &mut RuntimeServiceClient<Channel>,
    id: &str,
) -> Result<String, AdminError> {
    let request = ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    let mut info = match client.container_status(request).await {
        Ok(status) => status.into_inner().info,
        Err(status) if status.code() == Code::NotFound => {
            return Err(AdminError::Refused(format!(
                "there is no pod and no container {id}; `bulkhead pods` lists pods"
            )));
        }
        Err(status) => return Err(status.into()),
    };
    let info: Value = info
        .remove("info")
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let pod = info.get("sandboxID").and_then(Value::as_str).unwrap_or_default();
    Ok(pod.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_read_once_and_a_shorter_file_from_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut log = GuestLog {
            path: path.clone(),
            offset: 0,
        };
        assert_eq!(log.news().unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, "one\n\x1b[31mtwo\r\n").unwrap();
        assert_eq!(log.news().unwrap(), "one\n[31mtwo\n");
        assert_eq!(log.news().unwrap(), "");
        std::fs::write(&path, "three\n").unwrap();
        assert_eq!(log.news().unwrap(), "three\n");
    }
}
