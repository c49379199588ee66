//! Requests made by chance: good ones that were spoiled, and ones that were never good.

use bulkhead_proto::cri::{CreateContainerRequest, FILE_DESCRIPTOR_SET, RunPodSandboxRequest};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, MethodDescriptor,
    ReflectMessage, Value,
};

/// How often a list is long, and how long then at most; and how many bytes it may become. The daemon takes requests of up to
/// 16 MiB.
const LONG_ONE_IN: usize = 40;
const LONG: usize = 20_000;
const LONG_BYTES: usize = 12 << 20;

/// How often a text is huge: often enough that a daemon that kept one kind of request would be seen to grow.
const HUGE_TEXT_ONE_IN: usize = 6;
const HUGE_TEXT_BYTES: usize = 300_000;

/// What numbers are.
const NUMBERS: [i64; 12] = [
    0,
    1,
    -1,
    2,
    13,
    80,
    4096,
    65_536,
    1 << 31,
    1 << 40,
    i64::MIN,
    i64::MAX,
];

/// What texts are, besides what a test adds.
const TEXTS: [&str; 18] = [
    "",
    "zz",
    "../../zz",
    "/nowhere/zz",
    "zz\0zz",
    "zz\nzz",
    "ä€😀",
    "-1",
    "0.0.0.0",
    "::1/64",
    "CAP_SYS_ADMIN",
    "127.0.0.1:1/zz:1",
    "sha256:zz",
    "kernel.shm_rmid_forced",
    "memory.max",
    "say",
    "run",
    "zz/zz/zz@sha256:00",
];

/// Repeatable chance (SplitMix64).
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// A request, ready to be sent.
#[derive(Debug)]
pub struct Made {
    /// The path of its call.
    pub path: String,
    pub bytes: Vec<u8>,
}

/// Makes requests.
#[derive(Debug)]
pub struct Requests {
    chance: Chance,
    texts: Vec<String>,
    /// A pod and a container that are there, or were a moment ago.
    pod: String,
    container: String,
    methods: Vec<MethodDescriptor>,
    /// Good ones, to be spoiled.
    run: DynamicMessage,
    create: DynamicMessage,
}

impl Requests {
    /// The same requests for the same seed, if what is good is the same.
    pub fn new(seed: u64, run: &RunPodSandboxRequest, create: &CreateContainerRequest) -> Self {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
        let services = pool.services();
        let methods = services.flat_map(|service| service.methods().collect::<Vec<_>>());
        Self {
            chance: Chance(seed),
            texts: TEXTS.iter().map(ToString::to_string).collect(),
            pod: String::new(),
            container: String::new(),
            methods: methods.collect(),
            run: dynamic(&pool, "RunPodSandboxRequest", run),
            create: dynamic(&pool, "CreateContainerRequest", create),
        }
    }

    /// Texts that mean something to the node.
    pub fn learn(&mut self, texts: Vec<String>) {
        self.texts.extend(texts);
    }

    /// The pod and the container that requests are to be about from now on.
    pub fn aim(&mut self, pod: &str, container: &str) {
        pod.clone_into(&mut self.pod);
        container.clone_into(&mut self.container);
        self.create
            .set_field_by_name("pod_sandbox_id", Value::String(pod.to_owned()));
    }

    /// The request with this number.
    pub fn next(&mut self, number: usize) -> Made {
        let method = self.chance.of(&self.methods).clone();
        let good = match method.name() {
            "RunPodSandbox" => Some(self.run.clone()),
            "CreateContainer" => Some(self.create.clone()),
            _ => None,
        };
        let request = match good {
            Some(mut good) => {
                rename(&mut good, number);
                for _ in 0..self.chance.below(4) {
                    self.spoil(&mut good);
                }
                good
            }
            None => self.message(method.input(), 5),
        };
        Made {
            path: format!("/{}/{}", method.parent_service().full_name(), method.name()),
            bytes: request.encode_to_vec(),
        }
    }

    /// Changes some field of a good message, however deep.
    fn spoil(&mut self, message: &mut DynamicMessage) {
        let fields: Vec<_> = message.descriptor().fields().collect();
        if fields.is_empty() {
            return;
        }
        let field = self.chance.of(&fields).clone();
        let is_message = matches!(field.kind(), Kind::Message(_)) && !field.is_list() && !field.is_map();
        if is_message && message.has_field(&field) && !self.chance.one_in(5) {
            let inner = message.get_field_mut(&field).as_message_mut().unwrap();
            return self.spoil(inner);
        }
        let value = self.field(&field, 3);
        message.set_field(&field, value);
    }

    /// A message with some of its fields.
    fn message(&mut self, kind: MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(kind.clone());
        for field in kind.fields() {
            let is_wanted = field.name().ends_with("_id") && self.chance.one_in(2);
            if depth > 0 && (is_wanted || self.chance.one_in(3)) {
                let value = self.field(&field, depth - 1);
                message.set_field(&field, value);
            }
        }
        message
    }

    fn field(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        if field.is_map() {
            let entries = (0..self.chance.below(4))
                .map(|_| (MapKey::String(self.text()), Value::String(self.text())))
                .collect();
            return Value::Map(entries);
        }
        if field.is_list() {
            let few = self.chance.below(4);
            let is_long = self.chance.one_in(LONG_ONE_IN);
            let element = self.single(field, depth);
            let length = if is_long {
                LONG.min(LONG_BYTES / bytes_of(&element))
            } else {
                few
            };
            // The same many times is as long, and quickly made.
            return Value::List(vec![element; length]);
        }
        self.single(field, depth)
    }

    fn single(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        let number = *self.chance.of(&NUMBERS);
        match field.kind() {
            Kind::String if field.name() == "container_id" && !self.chance.one_in(5) => {
                Value::String(self.container.clone())
            }
            Kind::String if field.name().ends_with("_id") && !self.chance.one_in(5) => {
                Value::String(self.pod.clone())
            }
            Kind::String => Value::String(self.text()),
            Kind::Bytes => Value::Bytes(self.text().into()),
            Kind::Bool => Value::Bool(self.chance.one_in(2)),
            Kind::Message(kind) => Value::Message(self.message(kind, depth)),
            Kind::Enum(_) => Value::EnumNumber(*self.chance.of(&[0, 1, 2, 3, 9, 15, 99, -1])),
            Kind::Double => Value::F64(*self.chance.of(&[0.0, -1.5, f64::NAN, f64::INFINITY])),
            Kind::Uint32 => Value::U32(u32::try_from(number & 0xffff_ffff).unwrap()),
            Kind::Uint64 => Value::U64(number.cast_unsigned()),
            Kind::Int32 => Value::I32(i32::try_from(number).unwrap_or(i32::MIN)),
            Kind::Int64 => Value::I64(number),
            kind => unreachable!("CRI has no {kind:?}"),
        }
    }

    fn text(&mut self) -> String {
        if self.chance.one_in(HUGE_TEXT_ONE_IN) {
            return "z".repeat(HUGE_TEXT_BYTES);
        }
        self.chance.of(&self.texts).clone()
    }
}

fn dynamic(pool: &DescriptorPool, name: &str, message: &impl Message) -> DynamicMessage {
    let kind = pool.get_message_by_name(&format!("runtime.v1.{name}")).unwrap();
    let mut dynamic = DynamicMessage::new(kind);
    dynamic.transcode_from(message).unwrap();
    dynamic
}

/// Gives the object of a good request a name that no other has.
fn rename(request: &mut DynamicMessage, number: usize) {
    let config = request.get_field_by_name_mut("config").unwrap();
    let config = config.as_message_mut().unwrap();
    let metadata = config.get_field_by_name_mut("metadata").unwrap();
    let metadata = metadata.as_message_mut().unwrap();
    metadata.set_field_by_name("name", Value::String(format!("fuzzed-{number}")));
}

/// About what an element of a list takes in a request.
fn bytes_of(value: &Value) -> usize {
    let bytes = match value {
        Value::String(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::Message(message) => message.encoded_len(),
        _ => 8,
    };
    bytes + 4
}
