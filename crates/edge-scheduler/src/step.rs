//! A step of training as a list of tasks. The runtime executes this list and the simulator prices
//! it: there is no other order.
//!
//! The grid of blocks and micro-batches can be crossed in several ways (the paper's Fig. 4c;
//! FlexGen, arXiv 2303.06865, calls the extremes row by row and column by column). All add the
//! gradients of micro-batches in the same order, so that they differ in time and memory alone.

use crate::shape::Window;

/// The way of micro-batches through the blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// Row by row: a micro-batch goes up to the exit and back before the next one begins.
    #[default]
    Rows,
    /// Below the window all micro-batches take turns with each block, which is needed once then;
    /// through the window they go one by one.
    Mixed,
    /// Column by column: micro-batches take turns with each block of the window too, in both
    /// directions, from inputs that each of them keeps (activations are computed again).
    Columns,
}

impl Path {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rows, Self::Mixed, Self::Columns];

    /// As in `plan` and its JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Mixed => "mixed",
            Self::Columns => "columns",
        }
    }

    /// Residual streams that must be kept for this many micro-batches.
    pub fn streams(self, micro_batches: u32) -> u32 {
        match self {
            Self::Rows => 0,
            Self::Mixed | Self::Columns => micro_batches,
        }
    }
}

/// What decides the tasks of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// The window that is trained; its exit is where the step turns.
    pub window: Window,
    /// Micro-batches whose gradients add up.
    pub micro_batches: u32,
    /// Their way.
    pub path: Path,
    /// Whether activations of the window are computed again on the way back.
    pub recompute: bool,
    /// Whether hidden states at the window's lower edge come from a cache.
    pub cached: bool,
}

/// A piece of a step that is recorded at once and needs the weights of one block at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Ids of a micro-batch to the device and through the embedding.
    Embed {
        /// Which micro-batch.
        micro_batch: u32,
    },
    /// Hidden states of a micro-batch from the trunk cache to the device.
    Restore {
        /// Which micro-batch.
        micro_batch: u32,
    },
    /// A block below the window, in place.
    Trunk {
        /// Which micro-batch.
        micro_batch: u32,
        /// Which block.
        block: u32,
    },
    /// A block of the window, forward; keeps what its way back needs.
    Forward {
        /// Which micro-batch.
        micro_batch: u32,
        /// Which block.
        block: u32,
    },
    /// Exit norm, head, loss and their gradient.
    Loss {
        /// Which micro-batch.
        micro_batch: u32,
    },
    /// A block of the window, backward; with recomputation after another forward pass.
    Backward {
        /// Which micro-batch.
        micro_batch: u32,
        /// Which block.
        block: u32,
    },
    /// Clipping and AdamW.
    Update,
}

impl Task {
    /// The block whose weights it needs.
    pub fn block(self) -> Option<u32> {
        match self {
            Self::Trunk { block, .. } | Self::Forward { block, .. } => Some(block),
            Self::Backward { block, .. } => Some(block),
            Self::Embed { .. } | Self::Restore { .. } | Self::Loss { .. } | Self::Update => None,
        }
    }

    /// What it is, for timelines.
    pub fn label(self) -> String {
        match self {
            Self::Embed { micro_batch } => format!("embed, micro-batch {micro_batch}"),
            Self::Restore { micro_batch } => format!("restore, micro-batch {micro_batch}"),
            Self::Trunk { micro_batch, block } => {
                format!("block {block}, micro-batch {micro_batch}")
            }
            Self::Forward { micro_batch, block } => {
                format!("forward {block}, micro-batch {micro_batch}")
            }
            Self::Loss { micro_batch } => format!("loss, micro-batch {micro_batch}"),
            Self::Backward { micro_batch, block } => {
                format!("backward {block}, micro-batch {micro_batch}")
            }
            Self::Update => "update".to_owned(),
        }
    }
}

/// The tasks of a step in their order.
pub fn tasks(step: &StepShape) -> Vec<Task> {
    let mut tasks = Vec::new();
    let all = 0..step.micro_batches;
    match step.path {
        Path::Rows => {
            for micro_batch in all {
                start(step, micro_batch, &mut tasks);
                let trunk = trunk_blocks(step);
                tasks.extend(trunk.map(|block| Task::Trunk { micro_batch, block }));
                through_window(step, micro_batch, &mut tasks);
            }
        }
        Path::Mixed | Path::Columns => {
            for micro_batch in all.clone() {
                start(step, micro_batch, &mut tasks);
            }
            for block in trunk_blocks(step) {
                tasks.extend(all.clone().map(|micro_batch| Task::Trunk { micro_batch, block }));
            }
            if step.path == Path::Mixed {
                for micro_batch in all {
                    through_window(step, micro_batch, &mut tasks);
                }
            } else {
                for block in step.window.first..step.window.end {
                    let forward = |micro_batch| Task::Forward { micro_batch, block };
                    tasks.extend(all.clone().map(forward));
                }
                tasks.extend(all.clone().map(|micro_batch| Task::Loss { micro_batch }));
                for block in (step.window.first..step.window.end).rev() {
                    let backward = |micro_batch| Task::Backward { micro_batch, block };
                    tasks.extend(all.clone().map(backward));
                }
            }
        }
    }
    tasks.push(Task::Update);
    tasks
}

/// The blocks whose weights a step needs, in order; runs of the same block count once.
pub fn block_uses(tasks: &[Task]) -> Vec<u32> {
    let mut uses: Vec<u32> = tasks.iter().filter_map(|task| task.block()).collect();
    uses.dedup();
    uses
}

fn start(step: &StepShape, micro_batch: u32, tasks: &mut Vec<Task>) {
    tasks.push(match step.cached {
        true => Task::Restore { micro_batch },
        false => Task::Embed { micro_batch },
    });
}

fn trunk_blocks(step: &StepShape) -> std::ops::Range<u32> {
    0..if step.cached { 0 } else { step.window.first }
}

fn through_window(step: &StepShape, micro_batch: u32, tasks: &mut Vec<Task>) {
    let blocks = step.window.first..step.window.end;
    tasks.extend(blocks.clone().map(|block| Task::Forward { micro_batch, block }));
    tasks.push(Task::Loss { micro_batch });
    tasks.extend(blocks.rev().map(|block| Task::Backward { micro_batch, block }));
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn shapes() -> impl Iterator<Item = StepShape> {
        let windows = [(0, 1), (0, 5), (3, 5), (2, 3)];
        windows.into_iter().flat_map(|(first, end)| {
            Path::ALL.into_iter().flat_map(move |path| {
                [false, true].into_iter().flat_map(move |cached| {
                    [1, 2, 5].into_iter().map(move |micro_batches| StepShape {
                        window: Window { first, end },
                        micro_batches,
                        path,
                        recompute: path == Path::Columns,
                        cached,
                    })
                })
            })
        })
    }

    /// Each micro-batch meets every square of its row once, in an order that its data allow.
    #[test]
    fn every_path_visits_every_square_once_and_after_its_inputs() {
        for step in shapes() {
            let tasks = tasks(&step);
            assert_eq!(tasks.iter().collect::<HashSet<_>>().len(), tasks.len(), "{step:?}");
            assert_eq!(tasks.last(), Some(&Task::Update));
            for own in 0..step.micro_batches {
                let row: Vec<Task> = tasks
                    .iter()
                    .copied()
                    .filter(|task| match *task {
                        Task::Embed { micro_batch }
                        | Task::Restore { micro_batch }
                        | Task::Loss { micro_batch }
                        | Task::Trunk { micro_batch, .. }
                        | Task::Forward { micro_batch, .. }
                        | Task::Backward { micro_batch, .. } => micro_batch == own,
                        Task::Update => false,
                    })
                    .collect();
                let one = StepShape { micro_batches: 1, path: Path::Rows, ..step };
                let mut expected = super::tasks(&one);
                expected.pop();
                let renamed: Vec<String> = expected
                    .iter()
                    .map(|task| task.label().replace("batch 0", &format!("batch {own}")))
                    .collect();
                let labels: Vec<String> = row.iter().map(|task| task.label()).collect();
                assert_eq!(labels, renamed, "{step:?}");
            }
        }
    }

    /// Gradients of a tensor add up in the same order whatever the path: losses are bit-equal.
    #[test]
    fn gradients_add_up_in_the_order_of_micro_batches() {
        for step in shapes() {
            let tasks = tasks(&step);
            for block in step.window.first..step.window.end {
                let order: Vec<u32> = tasks
                    .iter()
                    .filter_map(|task| match *task {
                        Task::Backward { micro_batch, block: own } if own == block => {
                            Some(micro_batch)
                        }
                        _ => None,
                    })
                    .collect();
                assert_eq!(order, (0..step.micro_batches).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn columns_need_each_block_twice_at_most() {
        let step = StepShape {
            window: Window { first: 2, end: 4 },
            micro_batches: 8,
            path: Path::Columns,
            recompute: true,
            cached: false,
        };
        assert_eq!(block_uses(&tasks(&step)), [0, 1, 2, 3, 2]);
        let rows = StepShape { path: Path::Rows, micro_batches: 2, ..step };
        assert_eq!(block_uses(&tasks(&rows)), [0, 1, 2, 3, 2, 0, 1, 2, 3, 2]);
    }
}
