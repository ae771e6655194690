//! Makes a failing history shorter: delta debugging. Halves are dropped first, then ever
//! smaller parts, as long as what is left still fails.

use std::time::Instant;

/// The shortest part found of `whole` that still fails, until the deadline. `fails` is asked
/// about candidates, each shorter than the last that failed.
pub(crate) async fn shortest<T: Clone>(
    whole: &[T],
    deadline: Instant,
    mut fails: impl AsyncFnMut(&[T]) -> anyhow::Result<bool>,
) -> anyhow::Result<Vec<T>> {
    let mut best = whole.to_vec();
    let mut chunk = best.len().div_ceil(2);
    while chunk > 0 && best.len() > 1 {
        let mut start = 0;
        let mut is_shorter = false;
        while start < best.len() {
            if Instant::now() >= deadline {
                return Ok(best);
            }
            let end = (start + chunk).min(best.len());
            let candidate: Vec<T> = [&best[..start], &best[end..]].concat();
            if !candidate.is_empty() && fails(&candidate).await? {
                best = candidate;
                is_shorter = true;
            } else {
                start = end;
            }
        }
        if chunk == 1 && !is_shorter {
            break;
        }
        chunk = if chunk == 1 { 1 } else { chunk.div_ceil(2) };
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_it_takes_to_fail_is_left() {
        let whole: Vec<u32> = (0..50).collect();
        let deadline = Instant::now() + Duration::from_secs(3600);
        let mut asked = 0;
        let fails = async |part: &[u32]| {
            asked += 1;
            Ok(part.contains(&7) && part.contains(&33))
        };
        let found = shortest(&whole, deadline, fails).await.unwrap();
        assert_eq!(found, [7, 33]);
        assert!(asked < 60, "{asked} replays");
    }

    #[tokio::test]
    async fn without_time_nothing_is_tried() {
        let never = async |_: &[u32]| panic!("there is no time");
        let found = shortest(&[1, 2], Instant::now(), never).await.unwrap();
        assert_eq!(found, [1, 2]);
    }
}
