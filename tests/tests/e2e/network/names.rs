//! A name server that knows a few names, and remembers who asked for what (RFC 1035, RFC 3596).

use std::{
    collections::HashMap,
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Types of records.
const A: u16 = 1;
const AAAA: u16 = 28;

/// A server on port 53 of an address of the node, until it is dropped.
#[derive(Debug)]
pub(super) struct NameServer {
    stopped: Arc<AtomicBool>,
    serving: Option<JoinHandle<Vec<(String, IpAddr)>>>,
}

impl NameServer {
    pub(super) fn start(address: IpAddr, names: &[(&str, IpAddr)]) -> Self {
        let socket = UdpSocket::bind((address, 53)).expect("port 53 of the node is free");
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a time limit");
        let names: HashMap<String, IpAddr> = names
            .iter()
            .map(|(name, address)| ((*name).to_owned(), *address))
            .collect();
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        let serving = thread::spawn(move || {
            let mut asked = Vec::new();
            let mut question = [0; 512];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, peer)) = socket.recv_from(&mut question) else {
                    continue;
                };
                if let Some((name, answer)) = answer(&question[..length], &names) {
                    asked.push((name, peer.ip()));
                    socket.send_to(&answer, peer).expect("an answer is sent");
                }
            }
            asked
        });
        Self {
            stopped,
            serving: Some(serving),
        }
    }

    /// Stops it; the names that were asked for, and by whom.
    pub(super) fn stop(mut self) -> Vec<(String, IpAddr)> {
        self.stopped.store(true, Ordering::Relaxed);
        self.serving
            .take()
            .expect("it is stopped once")
            .join()
            .expect("the server has served")
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// The name that is asked for, and the answer: its address, nothing of that type, or that there is no such name.
fn answer(question: &[u8], names: &HashMap<String, IpAddr>) -> Option<(String, Vec<u8>)> {
    let header = question.get(..12)?;
    let mut name = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        name.push(String::from_utf8_lossy(question.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(question.get(at..at + 2)?.try_into().ok()?);
    let asked = question.get(12..at + 4)?;
    let name = name.join(".");
    let data: Option<Vec<u8>> = match (names.get(&name), kind) {
        (Some(IpAddr::V4(address)), A) => Some(address.octets().to_vec()),
        (Some(IpAddr::V6(address)), AAAA) => Some(address.octets().to_vec()),
        _ => None,
    };
    // An authoritative response; NXDOMAIN is 3.
    let code = if names.contains_key(&name) { 0 } else { 3 };
    let mut answer = vec![header[0], header[1], 0x84 | header[2] & 1, code, 0, 1];
    answer.extend([0, u8::from(data.is_some()), 0, 0, 0, 0]);
    answer.extend(asked);
    if let Some(data) = data {
        // The name of the question, class IN, a minute to live.
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 60, 0]);
        answer.push(u8::try_from(data.len()).ok()?);
        answer.extend(data);
    }
    Some((name, answer))
}
