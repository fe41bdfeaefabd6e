//! Bounds on what a binary body can make its reader do.
//!
//! bincode's own limit counts bytes as if each integer took its full width, so it refuses honest bodies of small
//! numbers, while it lets a few bytes claim a string of 16 MiB (allocated and zeroed before the first is
//! read), nest values until the stack ends (a recursive type needs some bytes a level), or ask for 2^60
//! elements that take no bytes at all. This deserializer stands between bincode and the type and holds four
//! bounds instead:
//!
//! - text and byte strings are taken as slices of the input, so only what is there is ever allocated;
//! - at most [`MAX_DEPTH`] values within each other;
//! - at most one element a byte of input, and [`FREE_ELEMENTS`] besides, over all lists and maps;
//! - at most [`RESERVE`] elements of room on a list's word alone; the rest is made as they arrive.

use std::cell::Cell;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};

/// Most values within each other, as in `serde_json`, so that both formats carry the same trees.
pub(super) const MAX_DEPTH: u32 = 128;

/// Elements that may take no bytes (units, empty structs), over a whole body.
pub(super) const FREE_ELEMENTS: usize = 65_536;

/// Elements that room is made for before the first is read. [`MAX_DEPTH`] nested lists of large elements thus
/// reserve some 2 MiB at most.
const RESERVE: usize = 64;

/// What is left of a body's bounds.
#[derive(Debug)]
pub(super) struct Budget(Cell<usize>);

impl Budget {
    /// For a body of that many bytes.
    pub(super) const fn new(bytes: usize) -> Self {
        Self(Cell::new(bytes.saturating_add(FREE_ELEMENTS)))
    }

    fn element<E: Error>(&self) -> Result<(), E> {
        let left = self.0.get().checked_sub(1).ok_or_else(|| E::custom("more elements than bytes"))?;
        self.0.set(left);
        Ok(())
    }
}

/// `T` within its bounds: a deserializer, a visitor, or access to what is inside a value.
pub(super) struct Bounded<'b, T> {
    inner: T,
    budget: &'b Budget,
    depth: u32,
    /// Whether this is a list, whose length the input says, and no tuple, whose length the type says.
    list: bool,
}

impl<'b, T> Bounded<'b, T> {
    pub(super) const fn new(inner: T, budget: &'b Budget) -> Self {
        Self { inner, budget, depth: 0, list: false }
    }

    fn map<U>(&self, inner: U) -> Bounded<'b, U> {
        Bounded { inner, budget: self.budget, depth: self.depth, list: self.list }
    }

    /// The visitor of a value one deeper than this deserializer.
    fn enter<V, E: Error>(&self, visitor: V, list: bool) -> Result<Bounded<'b, V>, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom("values nested too deep"));
        }
        Ok(Bounded { inner: visitor, budget: self.budget, depth: self.depth + 1, list })
    }
}

macro_rules! as_they_are {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Bounded<'_, D> {
    type Error = D::Error;

    as_they_are! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
        deserialize_char deserialize_str deserialize_bytes deserialize_unit deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_bytes(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.enter(visitor, false)?;
        self.inner.deserialize_option(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.enter(visitor, false)?;
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.enter(visitor, true)?;
        self.inner.deserialize_seq(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.enter(visitor, false)?;
        self.inner.deserialize_tuple(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, name: &'static str, len: usize, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.enter(visitor, false)?;
        self.inner.deserialize_tuple_struct(name, len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let visitor = self.enter(visitor, true)?;
        self.inner.deserialize_map(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.enter(visitor, false)?;
        self.inner.deserialize_struct(name, fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.enter(visitor, false)?;
        self.inner.deserialize_enum(name, variants, visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

// bincode does not describe itself: it calls only these, and only for the values entered above.
impl<'de, V: Visitor<'de>> Visitor<'de> for Bounded<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let deserializer = self.map(deserializer);
        self.inner.visit_some(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let deserializer = self.map(deserializer);
        self.inner.visit_newtype_struct(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.map(access);
        self.inner.visit_seq(access)
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.map(access);
        self.inner.visit_map(access)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.map(access);
        self.inner.visit_enum(access)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Bounded<'_, S> {
    type Value = S::Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let deserializer = self.map(deserializer);
        self.inner.deserialize(deserializer)
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        if self.list {
            self.budget.element()?;
        }
        let seed = self.map(seed);
        self.inner.next_element_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint().map(|size| size.min(RESERVE))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        self.budget.element()?;
        let seed = self.map(seed);
        self.inner.next_key_seed(seed)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        let seed = self.map(seed);
        self.inner.next_value_seed(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint().map(|size| size.min(RESERVE))
    }
}

impl<'b, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Bounded<'b, A> {
    type Error = A::Error;
    type Variant = Bounded<'b, A::Variant>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self::Variant), A::Error> {
        let Self { inner, budget, depth, list } = self;
        let (value, variant) = inner.variant_seed(Bounded { inner: seed, budget, depth, list })?;
        Ok((value, Bounded { inner: variant, budget, depth, list }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Bounded<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        let seed = self.map(seed);
        self.inner.newtype_variant_seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let visitor = self.map(visitor);
        self.inner.tuple_variant(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, A::Error> {
        let visitor = self.map(visitor);
        self.inner.struct_variant(fields, visitor)
    }
}
