//! What a gated product does with the product itself: nothing.

fn keep_up(at: u32, product: Stored) {
}
