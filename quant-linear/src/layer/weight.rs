//! A weight and a transform as layers share them: what they are, and the forms that backends made.
//!
//! ```text
//! SharedWeight   packed (out, in)  --prepare, once for each backend-->  the backend's own form
//!                packed (out, in)  <--export, where it is asked for---
//! SharedTransform  values          --load, once for each backend and type-->  the backend's own form
//! ```
//!
//! Clones of a layer share both, so a weight is prepared once for all of them. **No lock is held
//! while a backend works**: preparing runs parallel work, whose threads may pick up another forward
//! of the same layer and would wait for the lock for ever. So a form is made without a lock, and
//! the first one that is stored wins; a second one, made meanwhile, is dropped.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fp4_core::backend::erased::{Backend, DynLinear, DynResident, DynWeight, Opaque};
use fp4_core::{Epilogue, FloatSliceMut, FloatType, PackedMatrix, PackedShape, PackedView, Paths};

use crate::error::Error;
use crate::layer::StoredTransform;
use crate::run::Multiplier;
use crate::run::routing::Backends;

/// Forms by key, in a lock that is held to look and to store, never to make or to drop.
struct Forms<K, V>(Mutex<Vec<Form<K, V>>>);

struct Form<K, V> {
    key: K,
    /// Lives as long as the list of backends that it was made for: afterwards it serves nobody.
    list: Weak<()>,
    form: Arc<V>,
}

impl<K, V> Forms<K, V> {
    fn new() -> Self {
        Forms(Mutex::new(Vec::new()))
    }

    /// The form under the key that `is` knows, made by `make` and stored under `key` if there is
    /// none. Storing one drops those whose list of backends is gone.
    fn get_or_make(
        &self,
        list: &Backends,
        is: impl Fn(&K) -> bool,
        key: impl FnOnce() -> K,
        make: impl FnOnce() -> Result<V, Error>,
    ) -> Result<Arc<V>, Error> {
        let find = |forms: &[Form<K, V>]| {
            forms.iter().find(|form| is(&form.key)).map(|form| form.form.clone())
        };
        if let Some(form) = find(&self.lock()) {
            return Ok(form);
        }
        let made = Arc::new(make()?);
        let own = Form { key: key(), list: list.alive(), form: made.clone() };
        let mut forms = self.lock();
        if let Some(form) = find(&forms) {
            drop(forms);
            return Ok(form); // another thread was first; ours is dropped
        }
        let (mut kept, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *forms).into_iter().partition(|f| f.list.strong_count() > 0);
        kept.push(own);
        *forms = kept;
        drop(forms);
        drop(gone); // freeing may take long: not under the lock
        Ok(made)
    }

    /// Any of the forms.
    fn any(&self) -> Option<Arc<V>> {
        self.lock().first().map(|form| form.form.clone())
    }

    /// Drops the forms whose key `keep` refuses; where it refuses all, the first stays if `one`
    /// must.
    fn retain(&self, keep: impl Fn(&K) -> bool, one: bool) {
        let mut forms = self.lock();
        let (mut kept, mut gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *forms).into_iter().partition(|form| keep(&form.key));
        if one && kept.is_empty() && !gone.is_empty() {
            kept.push(gone.remove(0));
        }
        *forms = kept;
        drop(forms);
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Form<K, V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A weight prepared by one backend.
pub(crate) enum Prepared {
    /// Multiplies activations in packed form.
    Host(Box<dyn DynWeight>),
    /// Multiplies activations in packed form or in the backend's own.
    Device(Arc<dyn DynResident>, Box<dyn DynLinear>),
}

impl Prepared {
    /// Multiplies activations in packed form, to the host.
    pub(crate) fn matmul(
        &self,
        a: PackedView<'_>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, fp4_core::Error> {
        self.by_packed().matmul(a, epilogue, out)
    }

    /// The weight, as it multiplies activations in packed form.
    pub(crate) fn by_packed(&self) -> &dyn DynWeight {
        match self {
            Prepared::Host(w) => &**w,
            Prepared::Device(_, w) => &**w,
        }
    }

    /// The packed bytes that the weight was prepared from.
    fn export(&self, shape: PackedShape) -> Result<PackedMatrix, Error> {
        let mut packed = PackedMatrix::zeros(shape);
        self.by_packed().export_weight(&mut packed.view_mut())?;
        Ok(packed)
    }
}

/// The weight of one or more layers, in one copy: packed until a backend has prepared it, and then
/// in that backend's form, from which the packed bytes are written again where they are asked for.
/// Several backends in use at once keep a form each.
pub(crate) struct SharedWeight {
    shape: PackedShape,
    /// `None` as soon as there is a form.
    packed: Mutex<Option<Arc<PackedMatrix>>>,
    forms: Forms<Backend, Prepared>,
}

impl SharedWeight {
    pub(crate) fn new(packed: PackedMatrix) -> Self {
        let (shape, packed) = (packed.shape(), Mutex::new(Some(Arc::new(packed))));
        SharedWeight { shape, packed, forms: Forms::new() }
    }

    pub(crate) fn shape(&self) -> PackedShape {
        self.shape
    }

    /// The packed bytes: those that the weight was made of.
    pub(crate) fn packed(&self) -> Result<Arc<PackedMatrix>, Error> {
        // In this order: a form is there before the packed bytes go.
        let packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (packed, self.forms.any()) {
            (Some(packed), _) => Ok(packed),
            (None, Some(form)) => Ok(Arc::new(form.export(self.shape)?)),
            // Not reached: the last form is never dropped.
            (None, None) => Err(Error::MissingTensor { name: super::state::E2M1.into() }),
        }
    }

    /// The weight in the form of a backend that multiplies: made once, then kept.
    pub(crate) fn on(&self, list: &Backends, by: &Multiplier<'_>) -> Result<Arc<Prepared>, Error> {
        let form = self.forms.get_or_make(
            list,
            |key| key.is_same(by.backend),
            || by.backend.clone(),
            || {
                let packed = self.packed()?;
                Ok(match by.backend.as_resident() {
                    Some(device) => {
                        Prepared::Device(device.clone(), device.clone().prepare_linear(packed)?)
                    }
                    None => Prepared::Host(by.role.clone().prepare_dyn(packed)?),
                })
            },
        )?;
        let packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(packed); // one copy is kept; freed after the lock
        Ok(form)
    }

    /// Drops the forms of backends that are not in the list, but for the last one there is.
    pub(crate) fn keep_only(&self, backends: &[Backend]) {
        self.forms.retain(|key| backends.iter().any(|b| b.is_same(key)), true);
    }
}

impl fmt::Debug for SharedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedWeight")
            .field("shape", &self.shape())
            .field("forms", &self.forms.lock().len())
            .finish()
    }
}

/// The transform of one or more layers.
pub(crate) struct SharedTransform {
    stored: StoredTransform,
    forms: Forms<(Backend, FloatType), Box<Opaque>>,
}

impl SharedTransform {
    pub(crate) fn new(stored: StoredTransform) -> Self {
        SharedTransform { stored, forms: Forms::new() }
    }

    pub(crate) fn stored(&self) -> &StoredTransform {
        &self.stored
    }

    /// The transform as `device` loads it for activations of a type: made once, then kept.
    pub(crate) fn on(
        &self,
        list: &Backends,
        backend: &Backend,
        device: &Arc<dyn DynResident>,
        x: FloatType,
    ) -> Result<Arc<Box<Opaque>>, Error> {
        self.forms.get_or_make(
            list,
            |(key, of)| *of == x && key.is_same(backend),
            || (backend.clone(), x),
            || Ok(device.load_transform_dyn(&self.stored.view()?, x)?),
        )
    }

    /// Drops the forms of backends that are not in the list.
    pub(crate) fn keep_only(&self, backends: &[Backend]) {
        self.forms.retain(|(key, _)| backends.iter().any(|b| b.is_same(key)), false);
    }
}

impl fmt::Debug for SharedTransform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.stored, f)
    }
}
