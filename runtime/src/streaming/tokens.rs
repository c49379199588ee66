//! The jobs that wait for a client, each behind a token that works once and not for long.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::time::Instant;

use super::{
    port_forward::Dial,
    remote_command::{Command, Wanted},
};
use crate::identity::random;

/// How long a token works.
pub const LIFE: Duration = Duration::from_mins(1);

/// Most jobs that wait at once.
pub const WAITING: usize = 1000;

/// Random bytes of a token.
const TOKEN_BYTES: usize = 24;

/// Too many jobs wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{WAITING} URLs for exec, attach and port-forward wait to be used; each expires {} s after it was asked for", LIFE.as_secs())]
pub struct TooManyTokens;

/// What a client is joined to.
pub enum Job {
    /// A command that is started for the client.
    Exec(Wanted, Box<dyn Command>),
    /// A container that runs already.
    Attach(Wanted, Box<dyn Command>),
    /// The ports of a pod; those that the request names, which only old WebSocket clients need.
    PortForward(Vec<u16>, Arc<dyn Dial>),
}

/// Which kind of job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// [`Job::Exec`].
    Exec,
    /// [`Job::Attach`].
    Attach,
    /// [`Job::PortForward`].
    PortForward,
}

impl Job {
    /// Which kind it is.
    pub fn kind(&self) -> JobKind {
        match self {
            Self::Exec(..) => JobKind::Exec,
            Self::Attach(..) => JobKind::Attach,
            Self::PortForward(..) => JobKind::PortForward,
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Job").field(&self.kind()).finish()
    }
}

impl JobKind {
    /// Its name in a URL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }
}

/// The jobs that wait.
#[derive(Debug, Default)]
pub struct Tokens {
    waiting: Mutex<HashMap<String, (Instant, Job)>>,
}

impl Tokens {
    /// Keeps a job and gives its token.
    ///
    /// # Errors
    ///
    /// [`TooManyTokens`].
    pub fn put(&self, job: Job) -> Result<String, TooManyTokens> {
        let token = URL_SAFE_NO_PAD.encode(random::<TOKEN_BYTES>());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= WAITING {
            waiting.retain(|_, (since, _)| since.elapsed() < LIFE);
        }
        if waiting.len() >= WAITING {
            return Err(TooManyTokens);
        }
        waiting.insert(token.clone(), (Instant::now(), job));
        Ok(token)
    }

    /// Takes the job of this kind behind a token. The token has worked then, whatever becomes of the job.
    pub fn take(&self, kind: JobKind, token: &str) -> Option<Job> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, job) = waiting.remove(token)?;
        (since.elapsed() < LIFE && job.kind() == kind).then_some(job)
    }

    /// Lets those go that have expired.
    pub fn expire(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (since, _)| since.elapsed() < LIFE);
        waiting.shrink_to(WAITING / 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::port_forward::nowhere;

    fn job() -> Job {
        Job::PortForward(Vec::new(), nowhere())
    }

    #[test]
    fn a_token_works_once_and_for_its_kind() {
        let tokens = Tokens::default();
        let token = tokens.put(job()).unwrap();
        assert_eq!(token.len(), TOKEN_BYTES * 8 / 6);
        assert!(
            token
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        );
        assert!(tokens.take(JobKind::PortForward, "").is_none());
        assert!(tokens.take(JobKind::PortForward, &token).is_some());
        assert!(tokens.take(JobKind::PortForward, &token).is_none());
        let token = tokens.put(job()).unwrap();
        assert!(tokens.take(JobKind::Exec, &token).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_expire_and_make_room() {
        let tokens = Tokens::default();
        let first = tokens.put(job()).unwrap();
        let all: std::collections::HashSet<_> = (1..WAITING).map(|_| tokens.put(job()).unwrap()).collect();
        assert_eq!(all.len(), WAITING - 1, "two tokens were the same");
        assert_eq!(tokens.put(job()), Err(TooManyTokens));
        tokio::time::advance(LIFE).await;
        assert!(tokens.take(JobKind::PortForward, &first).is_none());
        let late = tokens.put(job()).unwrap();
        assert!(tokens.take(JobKind::PortForward, &late).is_some());
        tokens.expire();
        assert!(tokens.waiting.lock().unwrap().is_empty());
    }
}
