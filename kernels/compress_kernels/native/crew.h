// Threads that wait awake while a decoding step runs: its products take microseconds, less than waking a thread does.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <thread>

#include <omp.h>

#include "common.h"

namespace ck {

class Crew {
 public:
  // Runs `work` on this thread; the Parallel that it is given shares its ranges out between `threads`.
  static void run(int threads, const std::function<void(const Parallel&)>& work) {
    if (threads <= 1) return work([](int64_t count, const Range& body) { body(0, count); });
    Crew crew;
    std::exception_ptr failure;  // none may leave a parallel region
#pragma omp parallel num_threads(threads)
    {
      const int members = omp_get_num_threads();
      if (omp_get_thread_num() == 0) {
        try {
          work([&](int64_t count, const Range& body) { crew.share(count, body, members); });
        } catch (...) {
          failure = std::current_exception();
        }
        crew.over_.store(true, std::memory_order_release);
      } else {
        crew.serve(omp_get_thread_num(), members);
      }
    }
    if (failure) std::rethrow_exception(failure);
  }

 private:
  std::atomic<uint64_t> task_{0};
  std::atomic<int> done_{0};
  std::atomic<bool> over_{false};
  const Range* body_ = nullptr;
  int64_t count_ = 0;

  // Spins for a while; where there are more threads than processors another one gets the time.
  template <typename Condition>
  static void wait(Condition met) {
    for (int i = 0; !met(); ++i) {
      if (i < 4096)
        __builtin_ia32_pause();
      else
        std::this_thread::yield();
    }
  }

  static void part(int64_t count, const Range& body, int member, int members) {
    const int64_t from = count * member / members, to = count * (member + 1) / members;
    if (from < to) body(from, to);
  }

  void share(int64_t count, const Range& body, int members) {
    if (count <= 1 || members == 1) return body(0, count);
    body_ = &body, count_ = count;
    done_.store(0, std::memory_order_relaxed);
    task_.fetch_add(1, std::memory_order_release);
    part(count, body, 0, members);
    wait([&] { return done_.load(std::memory_order_acquire) == members - 1; });
  }

  void serve(int member, int members) {
    for (uint64_t seen = 0;;) {
      wait([&] { return task_.load(std::memory_order_acquire) != seen || over_.load(std::memory_order_acquire); });
      if (task_.load(std::memory_order_acquire) == seen) return;
      ++seen;  // no task follows before this one is done
      part(count_, *body_, member, members);
      done_.fetch_add(1, std::memory_order_release);
    }
  }
};

}  // namespace ck
