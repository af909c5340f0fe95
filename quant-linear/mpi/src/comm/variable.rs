//! The settings that an MPI library really has: what a parameter's name and value came to.

#![allow(unsafe_code, reason = "MPI's own interface; each block says what holds")]

use std::ffi::{CString, c_int};

use mpi::ffi;

/// The value of a control variable of the library's tools interface (MPI_T), a whole number: of
/// Open MPI a parameter such as `coll_tuned_allreduce_algorithm`. A name that the library takes no
/// notice of where it is set is an error here.
///
/// # Errors
/// What is wrong: no variable of this name, one of another size than an `int`'s, or MPI's error.
pub fn control_variable(name: &str) -> Result<c_int, String> {
    let expect = |what: &str, code: c_int| match code {
        0 => Ok(()),
        code => Err(format!("{what} of the control variable `{name}`: MPI error {code}")),
    };
    let text = CString::new(name).map_err(|_| format!("`{name:?}` is no name"))?;
    let mut level = 0;
    // SAFETY: MPI_T may be started as often as it is ended, below.
    expect("the start", unsafe { ffi::MPI_T_init_thread(0, &mut level) })?;
    let read = || {
        let mut index = 0;
        // SAFETY: the text ends with 0, and MPI_T has been started.
        let code = unsafe { ffi::MPI_T_cvar_get_index(text.as_ptr(), &mut index) };
        if code != 0 {
            return Err(format!("this MPI has no control variable `{name}`: look at its own list"));
        }
        let (mut lens, mut each) = ([0; 2], [0; 3]);
        // SAFETY: an all-null handle of a type and of an enumeration is a value of theirs.
        let (mut ty, mut list): (ffi::MPI_Datatype, ffi::MPI_T_enum) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let [verbosity, bind, scope] = &mut each;
        let [name_len, text_len] = &mut lens;
        // SAFETY: lengths of 0 ask for no texts, whose pointers may then be null.
        let code = unsafe {
            let none = std::ptr::null_mut();
            ffi::MPI_T_cvar_get_info(
                index, none, name_len, verbosity, &mut ty, &mut list, none, text_len, bind, scope,
            )
        };
        expect("the type", code)?;
        let mut bytes = 0;
        // SAFETY: the type is one that MPI gave.
        expect("the type's size", unsafe { ffi::MPI_Type_size(ty, &mut bytes) })?;
        if bytes as usize != size_of::<c_int>() {
            return Err(format!("the control variable `{name}` has {bytes} bytes, and no int has"));
        }
        // SAFETY: an all-null handle is a value of the type; MPI writes it next.
        let mut handle: ffi::MPI_T_cvar_handle = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: a variable that is bound to no object, as settings of a library are, takes none.
        let code = unsafe {
            let none = std::ptr::null_mut();
            ffi::MPI_T_cvar_handle_alloc(index, none, &mut handle, &mut count)
        };
        expect("a handle", code)?;
        let mut value: c_int = 0;
        let code = match count {
            // SAFETY: it is one value of an int's bytes, for which there is room.
            1 => unsafe { ffi::MPI_T_cvar_read(handle, (&raw mut value).cast()) },
            _ => 0,
        };
        // SAFETY: the handle was given above, and is given back once.
        unsafe { ffi::MPI_T_cvar_handle_free(&mut handle) };
        expect("the value", code)?;
        match count {
            1 => Ok(value),
            _ => Err(format!("the control variable `{name}` has {count} values, expected one")),
        }
    };
    let value = read();
    // SAFETY: it was started above.
    unsafe { ffi::MPI_T_finalize() };
    value
}
