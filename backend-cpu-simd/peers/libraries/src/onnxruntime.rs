//! ONNX Runtime's `MatMulNBits`: activations in f32, which it quantizes to 8 bits (accuracy level
//! 4), and weights of 4 bits in blocks of 32 with a scale in f32.
//!
//! The shared library is the one of pip's package `onnxruntime`, named by `FP4_ONNXRUNTIME`. The
//! model, one node, is written here.

use fp4_peers_common::{Data, Task, Work};
use ort::environment::Environment;
use ort::inputs;
use ort::session::Session;
use ort::value::TensorRef;

const BLOCK: usize = 32;

/// ONNX Runtime, loaded for ever.
#[derive(Clone)]
pub(crate) struct OnnxRuntime(Environment);

/// What a library's error says.
fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl OnnxRuntime {
    /// Loads the library in `FP4_ONNXRUNTIME`.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn load() -> Result<Self, String> {
        let path = std::env::var_os("FP4_ONNXRUNTIME").ok_or("FP4_ONNXRUNTIME names no library")?;
        let environment = ort::init_from(path).map_err(said)?.build().map_err(said)?;
        Ok(OnnxRuntime(environment))
    }

    /// The product of the task.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn work(&self, task: &Task) -> Result<Layer, String> {
        if !task.k.is_multiple_of(BLOCK) {
            return Err(format!("K is no multiple of {BLOCK}"));
        }
        let session = Session::builder(&self.0)
            .and_then(|mut session| {
                session = session.with_intra_threads(task.threads)?;
                session.commit_from_memory(&model(task))
            })
            .map_err(said)?;
        Ok(Layer { task: task.clone(), session, a: task.activations(Data::Gaussian), y: vec![] })
    }
}

/// A whole layer.
pub(crate) struct Layer {
    task: Task,
    session: Session,
    a: Vec<f32>,
    /// The last row, kept when it is to be compared.
    y: Vec<f32>,
}

impl Layer {
    fn product(&mut self, keep: bool) {
        let shape = [self.task.m, self.task.k];
        let a = TensorRef::from_array_view((shape, &self.a[..])).expect("a tensor");
        let outputs = self.session.run(inputs!["a" => a]).expect("multiplies");
        if keep {
            let (_, y) = outputs["y"].try_extract_tensor::<f32>().expect("a tensor of f32");
            self.y = y[y.len() - self.task.n..].to_vec();
        }
    }
}

impl Work for Layer {
    fn run(&mut self) {
        self.product(false);
    }

    fn check(&mut self) -> Result<(), String> {
        self.product(true);
        self.task.check(&self.y, &self.task.expected([Data::Gaussian; 2]))
    }

    fn amount(&self) -> f64 {
        self.task.macs()
    }
}

/// A message in protobuf's encoding.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u64, bytes: impl AsRef<[u8]>) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.as_ref().len() as u64);
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    fn message(self, field: u64, message: Message) -> Self {
        self.bytes(field, message.0)
    }
}

/// The model `y = MatMulNBits(a, w, scales)`, in the fields of `onnx.proto`.
fn model(task: &Task) -> Vec<u8> {
    const FLOAT: u64 = 1;
    const UINT8: u64 = 2;
    let Task { m, n, k, .. } = *task;
    let (codes, scales) = quantized(&task.distinct(Data::Gaussian));
    let tensor = |name: &str, ty, dims: &[usize], data: Vec<u8>| {
        let dims = dims.iter().fold(Message::default(), |of, &dim| of.number(1, dim as u64));
        dims.number(2, ty).bytes(8, name).bytes(9, task.repeated(&data))
    };
    let value = |name: &str, dims: [usize; 2]| {
        let dim = |dim: usize| Message::default().number(1, dim as u64);
        let shape = Message::default().message(1, dim(dims[0])).message(1, dim(dims[1]));
        let tensor = Message::default().number(1, FLOAT).message(2, shape);
        Message::default().bytes(1, name).message(2, Message::default().message(1, tensor))
    };
    let attributes =
        [("K", k), ("N", n), ("bits", 4), ("block_size", BLOCK), ("accuracy_level", 4)];
    let node = ["a", "w", "scales"].iter().fold(Message::default(), |of, name| of.bytes(1, name));
    let node = node.bytes(2, "y").bytes(4, "MatMulNBits").bytes(7, "com.microsoft");
    let node = attributes.iter().fold(node, |of, &(name, number)| {
        let attribute = Message::default().bytes(1, name).number(3, number as u64);
        of.message(5, attribute.number(20, 2))
    });
    let scales = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let graph = Message::default()
        .message(1, node)
        .bytes(2, "layer")
        .message(5, tensor("w", UINT8, &[n, k / BLOCK, BLOCK / 2], codes))
        .message(5, tensor("scales", FLOAT, &[n * k / BLOCK], scales))
        .message(11, value("a", [m, k]))
        .message(12, value("y", [m, n]));
    let opset = |domain, version| Message::default().bytes(1, domain).number(2, version);
    let model = Message::default().number(1, 10).message(7, graph);
    model.message(8, opset("", 21)).message(8, opset("com.microsoft", 1)).0
}

/// Codes 0 to 15, the even value of a byte low, that stand for -8 to 7 times the block's scale.
fn quantized(w: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (vec![], vec![]);
    for block in w.chunks_exact(BLOCK) {
        let largest = block.iter().fold(0f32, |max, &x| if x.abs() > max.abs() { x } else { max });
        let scale = largest / -8.0;
        let code = |x: f32| if scale == 0.0 { 8 } else { (x / scale).round().min(7.0) as i8 + 8 };
        codes.extend(block.chunks_exact(2).map(|x| (code(x[0]) | code(x[1]) << 4) as u8));
        scales.push(scale);
    }
    (codes, scales)
}
