//! The hypervisor's end of the control line.
//!
//! **Frames.** See [`frame`](crate::frame). The first byte says what it is; numbers are little-endian. A nonce has 16
//! bytes. H is HMAC-SHA256 ([`mac`]), whole (32 bytes), or its first 16 bytes where it is said.
//!
//! | frame | from | holds |
//! |---|---|---|
//! | 1 hello | client | version (2 bytes), the client's nonce |
//! | 2 challenge | hypervisor | version (2 bytes), the hypervisor's nonce, fresh |
//! | 3 proof | client | H(key, "bulkhead control 2 client", both nonces, the client's first) |
//! | 4 welcome | hypervisor | the boot (16 bytes), H(key, "bulkhead control 2 hypervisor", both nonces, the boot) |
//! | 5 request | client | number (4 bytes), [`Operation`] in postcard's encoding, tag (16 bytes) |
//! | 6 response | hypervisor | number of the request, [`Response`] in postcard's encoding, tag |
//!
//! The session's key is H(key, "bulkhead control 2 session", both nonces). A tag is the start of H(session's key, all of
//! the frame before it): the first byte makes it that of one direction, the number that of one place in the session, and
//! the key that of one session. The first request has number 0. There is one response to each request, and the next
//! request comes after it. A client that hears nothing sends the same frame again; the hypervisor then sends the same
//! response again and does nothing twice.
//!
//! **The end.** A session is over when another one begins, and 30 seconds ([`KEPT`]) after the last new request: whoever
//! holds a frame back can not have it done whenever he likes. Who comes later begins another.
//!
//! **The boot** is a number that is another one each time the machine starts. Sequence numbers of events and offsets of
//! consoles count from the start, so that a client that comes back to another boot begins at 0 again.
//!
//! **Versions.** A hypervisor of another version answers hello with its own version, and takes no proof of another.
//!
//! Nobody who has not the key can send what is accepted, or bring a session to its end, or make it last. There is no
//! secrecy: who listens on the line reads what is on it.

#[cfg(test)]
mod tests;

use crate::bucket::{Bucket, Rate};
use crate::frame::{self, Decoder, Received, WIRE};
use crate::mac::{Key, TAG, tag, verify};
use crate::{Operation, Refusal, Response};
use heapless::Vec;
use serde::{Deserialize, Serialize};

/// Version of the protocol.
pub const VERSION: u16 = 2;
/// Most image bytes of one request.
pub const CHUNK: usize = 2048;
/// Seconds that a session stays without a new request.
pub const KEPT: u64 = 30;

/// Reports of what was refused that may come at [`Line::report`]'s interval, and intervals in which one more may.
const REPORTS: u32 = 16;
const SELDOM: u64 = 60;

/// First byte of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "the table above says it")]
pub enum Kind {
    Hello = 1,
    Challenge = 2,
    Proof = 3,
    Welcome = 4,
    Request = 5,
    Response = 6,
}

/// What a tag of the handshake is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the module's documentation says it")]
pub enum Purpose {
    Client,
    Hypervisor,
    Session,
    /// The hypervisor's next nonce; over the boot and a count.
    Nonce,
}

impl Purpose {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Client => b"bulkhead control 2 client",
            Self::Hypervisor => b"bulkhead control 2 hypervisor",
            Self::Session => b"bulkhead control 2 session",
            Self::Nonce => b"bulkhead control 2 nonce",
        }
    }
}

/// A number that is used once.
pub type Nonce = [u8; 16];

/// H for `purpose` over two nonces.
#[must_use]
pub fn derive(key: &Key, purpose: Purpose, first: &Nonce, second: &Nonce) -> Key {
    tag(key, &[purpose.label(), first, second])
}

/// H of a welcome.
#[must_use]
pub fn welcome(key: &Key, client: &Nonce, own: &Nonce, boot: &Nonce) -> Key {
    tag(key, &[Purpose::Hypervisor.label(), client, own, boot])
}

/// A frame with a tag, encoded for the line; `None` if `payload` is too long.
#[must_use]
pub fn seal(key: &Key, kind: Kind, number: u32, payload: &[u8]) -> Option<Vec<u8, WIRE>> {
    let head = [kind as u8];
    let number = number.to_le_bytes();
    let tag = tag(key, &[&head, &number, payload]);
    plain(&[&head, &number, payload, tag.get(..TAG)?])
}

/// Number and payload of a frame of this kind, if its tag is right.
#[must_use]
pub fn open<'a>(key: &Key, kind: Kind, frame: &'a [u8]) -> Option<(u32, &'a [u8])> {
    let (body, tag) = frame.split_at_checked(frame.len().checked_sub(TAG)?)?;
    let (head, rest) = body.split_first()?;
    let (number, payload) = rest.split_first_chunk::<4>()?;
    (*head == kind as u8 && verify(key, &[body], tag)).then(|| (u32::from_le_bytes(*number), payload))
}

/// A frame of these parts, encoded for the line.
#[must_use]
pub fn plain(parts: &[&[u8]]) -> Option<Vec<u8, WIRE>> {
    let mut frame = Vec::<u8, { frame::MOST }>::new();
    parts.iter().try_for_each(|part| frame.extend_from_slice(part)).ok()?;
    frame::encode(&frame)
}

/// Frames that changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Refused {
    /// No frames: cut, garbled, too long, of an unknown kind.
    pub garbled: u32,
    /// Without the key, or changed on the way.
    pub unproved: u32,
    /// Requests that had come before.
    pub replayed: u32,
    /// Requests that left out others.
    pub skipped: u32,
}

impl Refused {
    const NONE: Self = Self { garbled: 0, unproved: 0, replayed: 0, skipped: 0 };

    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.garbled.saturating_add(self.unproved).saturating_add(self.replayed).saturating_add(self.skipped)
    }
}

/// What a byte brought about.
#[derive(Debug)]
pub enum Step<'a> {
    /// Nothing.
    Nothing,
    /// These bytes are to be sent.
    Send(&'a [u8]),
    /// A client has proved the key: these bytes are to be sent, and a session has begun.
    Welcome(&'a [u8]),
    /// A request that is new and genuine: [`Line::respond`] is to be called with what comes of it.
    Request(Operation<'a>),
}

struct Session {
    key: Key,
    /// Number of the next request.
    next: u32,
    /// When it began, or the last new request came.
    heard: u64,
}

/// The hypervisor's end.
pub struct Line {
    decoder: Decoder,
    gate: Gate,
    told: Refused,
    told_at: Option<u64>,
    reports: Bucket,
}

/// What knows the key.
struct Gate {
    key: Key,
    /// Of this start of the machine alone; the nonces are made of it.
    boot: Nonce,
    /// Challenges so far.
    count: u128,
    /// The nonces of the last challenge, the client's first; each is good for one proof.
    offered: Option<(Nonce, Nonce)>,
    session: Option<Session>,
    /// Ticks that it stays without a new request.
    kept: u64,
    /// What was said last in a handshake.
    greeting: Vec<u8, WIRE>,
    /// The last response, in case it has to be sent again.
    response: Vec<u8, WIRE>,
    refused: Refused,
}

impl Line {
    /// A line with this key. `boot` must be another one each time the machine starts; it is not secret. `second` is in the
    /// ticks of [`Line::receive`].
    #[must_use]
    pub const fn new(key: Key, boot: Nonce, second: u64) -> Self {
        let gate = Gate {
            key,
            boot,
            count: 0,
            offered: None,
            session: None,
            kept: second.saturating_mul(KEPT),
            greeting: Vec::new(),
            response: Vec::new(),
            refused: Refused::NONE,
        };
        Self { decoder: Decoder::new(), gate, told: Refused::NONE, told_at: None, reports: Bucket::new() }
    }

    /// Takes a byte that came from the line at `now`.
    pub fn receive(&mut self, byte: u8, now: u64) -> Step<'_> {
        match self.decoder.push(byte) {
            Received::Nothing => Step::Nothing,
            Received::Garbage => self.gate.refuse(|refused| &mut refused.garbled),
            Received::Frame(frame) => self.gate.frame(frame, now),
        }
    }

    /// The bytes that answer the request that [`Line::receive`] gave last.
    pub fn respond(&mut self, response: &Response<'_>) -> &[u8] {
        self.gate.respond(response)
    }

    /// What was refused since the last report: at most once in `interval` ticks, and once in [`SELDOM`] of these for who goes
    /// on, so that he does not drive all other events out.
    pub fn report(&mut self, now: u64, interval: u64) -> Option<Refused> {
        let all = self.gate.refused;
        let rate = Rate { burst: REPORTS, ticks: interval.saturating_mul(SELDOM) };
        let early = self.told_at.is_some_and(|at| now.saturating_sub(at) < interval);
        if all == self.told || early || !self.reports.take(now, rate) {
            return None;
        }
        self.told_at = Some(now);
        let told = core::mem::replace(&mut self.told, all);
        Some(Refused {
            garbled: all.garbled.saturating_sub(told.garbled),
            unproved: all.unproved.saturating_sub(told.unproved),
            replayed: all.replayed.saturating_sub(told.replayed),
            skipped: all.skipped.saturating_sub(told.skipped),
        })
    }

    /// What was refused since the start.
    #[must_use]
    pub const fn refused(&self) -> Refused {
        self.gate.refused
    }
}

impl Gate {
    fn refuse(&mut self, why: fn(&mut Refused) -> &mut u32) -> Step<'static> {
        let count = why(&mut self.refused);
        *count = count.saturating_add(1);
        Step::Nothing
    }

    fn frame<'a>(&'a mut self, frame: &'a [u8], now: u64) -> Step<'a> {
        match frame.split_first() {
            Some((1, hello)) if hello.len() == 18 => self.hello(hello),
            Some((3, proof)) => self.proof(proof, now),
            Some((5, _)) => self.request(frame, now),
            _ => self.refuse(|refused| &mut refused.garbled),
        }
    }

    fn hello(&mut self, hello: &[u8]) -> Step<'_> {
        let Some((version, client)) = versioned(hello) else { return Step::Nothing };
        self.count += 1;
        let whole = derive(&self.key, Purpose::Nonce, &self.boot, &self.count.to_le_bytes());
        let own = whole.first_chunk::<16>().copied().unwrap_or_default();
        self.offered = (version == VERSION).then_some((client, own));
        let parts: [&[u8]; 3] = [&[Kind::Challenge as u8], &VERSION.to_le_bytes(), &own];
        self.greeting = plain(&parts).unwrap_or_default();
        Step::Send(&self.greeting)
    }

    fn proof(&mut self, proof: &[u8], now: u64) -> Step<'_> {
        let right = |(client, own): &(Nonce, Nonce)| {
            proof.len() == 32 && verify(&self.key, &[Purpose::Client.label(), client, own], proof)
        };
        let Some((client, own)) = self.offered.take().filter(right) else {
            return self.refuse(|refused| &mut refused.unproved);
        };
        self.session = Some(Session { key: derive(&self.key, Purpose::Session, &client, &own), next: 0, heard: now });
        self.response.clear();
        let proof = welcome(&self.key, &client, &own, &self.boot);
        self.greeting = plain(&[&[Kind::Welcome as u8], &self.boot, &proof]).unwrap_or_default();
        Step::Welcome(&self.greeting)
    }

    fn request<'a>(&'a mut self, frame: &'a [u8], now: u64) -> Step<'a> {
        let kept = self.kept;
        self.session.take_if(|session| now.saturating_sub(session.heard) > kept);
        let opened = self.session.as_ref().and_then(|session| open(&session.key, Kind::Request, frame));
        let (Some((number, payload)), Some(session)) = (opened, &mut self.session) else {
            return self.refuse(|refused| &mut refused.unproved);
        };
        if number > session.next || number == u32::MAX {
            return self.refuse(|refused| &mut refused.skipped);
        }
        if number < session.next {
            let last = number + 1 == session.next;
            self.refuse(|refused| &mut refused.replayed);
            return if last { Step::Send(&self.response) } else { Step::Nothing };
        }
        (session.next, session.heard) = (number + 1, now);
        self.response.clear();
        match postcard::from_bytes(payload) {
            Ok(operation) => Step::Request(operation),
            Err(_) => Step::Send(self.respond(&Response::Refused(Refusal::Unknown))),
        }
    }

    fn respond(&mut self, response: &Response<'_>) -> &[u8] {
        if let Some(session) = &self.session
            && let Some(number) = session.next.checked_sub(1)
            && self.response.is_empty()
        {
            let whole = encode(&session.key, number, response);
            let whole = whole.or_else(|| encode(&session.key, number, &Response::Refused(Refusal::TooLong)));
            self.response = whole.unwrap_or_default();
        }
        &self.response
    }
}

/// Version and nonce of a hello or a challenge, without its first byte.
#[must_use]
pub fn versioned(body: &[u8]) -> Option<(u16, Nonce)> {
    let (version, nonce) = body.split_first_chunk::<2>()?;
    Some((u16::from_le_bytes(*version), nonce.try_into().ok()?))
}

fn encode(key: &Key, number: u32, response: &Response<'_>) -> Option<Vec<u8, WIRE>> {
    let mut payload = [0; frame::MOST];
    let payload = postcard::to_slice(response, &mut payload).ok()?;
    seal(key, Kind::Response, number, payload)
}
