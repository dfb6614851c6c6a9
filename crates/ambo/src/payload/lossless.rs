//! What JSON would take and not give back: numbers that are not finite, which it writes as null, and `Some` of what it writes
//! as null, which is read as `None`. Found by a serializer that writes nothing.
//!
//! A field of a struct or variant may have a way of its own to be read (`deserialize_with`), so a `Some` there is let pass.

use std::fmt;

use serde::ser::{
    Error, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    NotFinite,
    EmptySome,
    /// Not ours to tell: whoever wrote it has taken it.
    Other,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Loss::NotFinite => {
                "holds a number that is not finite, for which JSON has only null; make it an Option, or a text"
            }
            Loss::EmptySome => "is `Some` of what JSON writes as null, and would be read as `None`",
            Loss::Other => "cannot be written",
        })
    }
}

impl std::error::Error for Loss {}

impl Error for Loss {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Loss::Other
    }
}

/// What would be lost of a value, if anything.
pub(super) fn look(value: &impl Serialize) -> Option<Loss> {
    value.serialize(Look::Plain).err().filter(|loss| *loss != Loss::Other)
}

/// Where the next value stands.
#[derive(Debug, Clone, Copy)]
enum Look {
    Plain,
    Field,
    InSome,
}

type Looked = Result<(), Loss>;

impl Look {
    fn null(self) -> Looked {
        if matches!(self, Look::InSome) { Err(Loss::EmptySome) } else { Ok(()) }
    }
}

macro_rules! kept {
    ($($method:ident: $kind:ty,)*) => {
        $(fn $method(self, _: $kind) -> Looked {
            Ok(())
        })*
    };
}

impl Serializer for Look {
    type Ok = ();
    type Error = Loss;
    type SerializeSeq = Within;
    type SerializeTuple = Within;
    type SerializeTupleStruct = Within;
    type SerializeTupleVariant = Within;
    type SerializeMap = Within;
    type SerializeStruct = Within;
    type SerializeStructVariant = Within;

    kept! {
        serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_i128: i128, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_u128: u128, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8],
    }

    fn serialize_f32(self, number: f32) -> Looked {
        if number.is_finite() { Ok(()) } else { Err(Loss::NotFinite) }
    }

    fn serialize_f64(self, number: f64) -> Looked {
        if number.is_finite() { Ok(()) } else { Err(Loss::NotFinite) }
    }

    fn serialize_none(self) -> Looked {
        self.null()
    }

    fn serialize_unit(self) -> Looked {
        self.null()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Looked {
        self.null()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Looked {
        value.serialize(if matches!(self, Look::Field) { self } else { Look::InSome })
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Looked {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Looked {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Looked {
        value.serialize(Look::Field)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Within, Loss> {
        Ok(Within(Look::Plain))
    }

    fn serialize_tuple(self, _: usize) -> Result<Within, Loss> {
        Ok(Within(Look::Plain))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Within, Loss> {
        Ok(Within(Look::Field))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Within, Loss> {
        Ok(Within(Look::Field))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Within, Loss> {
        // A struct with a flattened field is one.
        Ok(Within(Look::Field))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Within, Loss> {
        Ok(Within(Look::Field))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Within, Loss> {
        Ok(Within(Look::Field))
    }

    fn collect_str<T: fmt::Display + ?Sized>(self, _: &T) -> Looked {
        Ok(())
    }
}

/// Within something that holds others, each standing so.
struct Within(Look);

macro_rules! within {
    ($($kind:ident: $method:ident($($name:ty)?),)*) => {
        $(impl $kind for Within {
            type Ok = ();
            type Error = Loss;

            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $name,)? value: &T) -> Looked {
                value.serialize(self.0)
            }

            fn end(self) -> Looked {
                Ok(())
            }
        })*
    };
}

within! {
    SerializeSeq: serialize_element(),
    SerializeTuple: serialize_element(),
    SerializeTupleStruct: serialize_field(),
    SerializeTupleVariant: serialize_field(),
    SerializeStruct: serialize_field(&'static str),
    SerializeStructVariant: serialize_field(&'static str),
}

impl SerializeMap for Within {
    type Ok = ();
    type Error = Loss;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, _: &T) -> Looked {
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Looked {
        value.serialize(self.0)
    }

    fn end(self) -> Looked {
        Ok(())
    }
}
