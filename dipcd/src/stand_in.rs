//! A remote process at home.
#![forbid(unsafe_code)]
