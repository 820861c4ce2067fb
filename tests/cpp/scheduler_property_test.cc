// Random traffic on the whole scheduler: 120,000 operations over ten configurations, two letters,
// a tiny pool. World checks every step's reads, events and limits; check_invariants() runs after
// each operation.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "world.h"

namespace srt {
namespace {

struct Setting {
  std::string name;
  SchedulerConfig config;
  size_t depth = 1;  // steps in flight
};

void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.name; }

class Traffic {
 public:
  static constexpr int32_t kNumIds = 12;  // few, so that ids return while old steps are in flight

  Traffic(const Setting& setting, uint32_t seed)
      : random_(seed), setting_(setting), world_(setting.config) {
    world_.sampler = [this](const Life&) { return letter(); };
  }

  void step() {
    const uint32_t dice = below(100);
    if (dice < 22) {
      add();
    } else if (dice < 60) {
      plan();
    } else if (dice < 93) {
      if (world_.num_in_flight() > 0) commit();
    } else if (dice < 99) {
      world_.abort(below(kNumIds));
    } else {
      flush();
    }
    world_.scheduler.check_invariants();
  }

  World& world() { return world_; }

 private:
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  TokenId letter() { return static_cast<TokenId>(below(2)); }

  void plan() {
    if (world_.num_in_flight() >= setting_.depth) commit();
    const bool planned = world_.schedule();
    ASSERT_TRUE(planned || world_.num_in_flight() > 0 || world_.num_alive() == 0)
        << "sequences wait, nothing runs, nothing is planned";
  }

  void add() {
    NewSequence seq;
    seq.id = below(kNumIds);
    if (world_.is_alive(seq.id)) return;
    const auto max_seq_len = static_cast<uint32_t>(setting_.config.max_seq_len);
    seq.tokens.resize(1 + below(max_seq_len));
    for (TokenId& token : seq.tokens) token = letter();
    seq.max_new_tokens = static_cast<int32_t>(below(12));
    seq.min_new_tokens = static_cast<int32_t>(below(4));
    if (below(4) == 0) seq.sampling.stop_token_ids = {1};
    if (below(4) == 0) seq.sampling.logit_bias = {{0, 1.0F}, {1, -1.0F}};
    if (below(4) == 0) seq.sampling.logprob_start = static_cast<int32_t>(below(max_seq_len));
    seq.priority = below(4) == 0 ? 1 : 0;
    seq.ns = below(4) == 0 ? "other" : "";
    seq.sync = below(3) == 0;
    const int64_t slots = int64_t{setting_.config.num_pages - 1} * setting_.config.page_size;
    const auto needed = static_cast<int64_t>(seq.tokens.size()) + (seq.max_new_tokens > 0 ? 1 : 0);
    if (needed > int64_t{max_seq_len} || needed > slots) {
      ASSERT_THROW(world_.add(seq), InvalidArgument);
      return;
    }
    world_.add(seq);
  }

  void commit() {
    world_.commit();
    for (SeqId id = 0; id < kNumIds; ++id) draft(id);
  }

  void draft(SeqId id) {
    if (!world_.is_alive(id) || !world_.life(id).request.sync) return;
    std::vector<TokenId> tokens(below(6));
    for (TokenId& token : tokens) token = letter();
    if (world_.is_in_flight(id)) {
      ASSERT_THROW(world_.draft(id, tokens), InvalidArgument);
    } else {
      world_.draft(id, tokens);
    }
  }

  void flush() { ASSERT_EQ(world_.scheduler.flush(), world_.num_alive() == 0); }

  std::mt19937 random_;
  Setting setting_;
  World world_;
};

class SchedulerProperty : public testing::TestWithParam<Setting> {};

TEST_P(SchedulerProperty, EveryReadAndEveryEventIsRight) {
  Traffic traffic(GetParam(), 5);
  for (int i = 0; i < 12'000 && !HasFatalFailure(); ++i) {
    SCOPED_TRACE(i);
    traffic.step();
  }
  if (HasFatalFailure()) return;
  const SchedulerStats stats = traffic.world().scheduler.stats();
  EXPECT_GT(stats.num_retracted, 0) << "the pool was never short";
  if (GetParam().config.max_running > Traffic::kNumIds) {
    EXPECT_GT(stats.num_right_drafts, 50);
    EXPECT_GT(stats.num_drafts, stats.num_right_drafts + 50);
  }
  traffic.world().run_to_end();
  traffic.world().check_drained();
}

Setting setting(std::string name, size_t depth, void (*change)(SchedulerConfig&)) {
  SchedulerConfig config;
  config.num_pages = 41;
  config.max_running = 14;  // drafts use what nobody else can
  config.max_seq_len = 24;
  config.max_step_tokens = 16;
  config.max_prefill_tokens = 10;
  config.init_new_token_ratio = 0.2;
  config.min_new_token_ratio = 0.0;
  config.new_token_ratio_decay = 0.05;
  change(config);
  return {std::move(name), config, depth};
}

void pages_of_4(SchedulerConfig& config) {
  config.page_size = 4;
  config.num_pages = 12;
  config.shared_prefix_pages = 1;
}

INSTANTIATE_TEST_SUITE_P(
    Settings, SchedulerProperty,
    testing::Values(setting("Plain", 1, [](SchedulerConfig&) {}),
                    setting("Overlap", 2, [](SchedulerConfig&) {}),
                    setting("Pages4", 1, pages_of_4), setting("Pages4Overlap", 2, pages_of_4),
                    setting("NoRadix", 2, [](SchedulerConfig& c) { c.enable_radix = false; }),
                    setting("NotMixed", 2, [](SchedulerConfig& c) { c.enable_mixed = false; }),
                    setting("Fcfs", 2, [](SchedulerConfig& c) { c.policy = Policy::kFcfs; }),
                    setting("Random", 1, [](SchedulerConfig& c) { c.policy = Policy::kRandom; }),
                    setting("DfsWeight", 2,
                            [](SchedulerConfig& c) { c.policy = Policy::kDfsWeight; }),
                    setting("FewLogits", 2,
                            [](SchedulerConfig& c) {
                              pages_of_4(c);
                              c.max_running = 5;
                              c.max_step_logits = 7;
                            })),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace srt
