//! Token embeddings.

pub mod embedding_gather;
pub mod embedding_scatter;
