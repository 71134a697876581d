#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include <pagedkv/kv_layout.hpp>
#include <pagedkv/model_shape.hpp>

namespace {

using namespace pagedkv;

std::int64_t token_bytes(const model_shape& model) {
  return kv_layout({.num_layers = model.num_layers, .num_kv_heads = model.num_kv_heads, .head_dim = model.head_dim})
      .token_bytes();
}

TEST(ModelShape, PresetsByTheirBytesPerToken) {
  const std::pair<const char*, std::int64_t> expected[] = {
      {"codegeex4-9b", 40'960},   {"internlm2-7b", 131'072}, {"internlm-7b", 524'288}, {"llama-3.1-8b", 131'072},
      {"llama-3.1-70b", 327'680}, {"qwen2.5-7b", 57'344},    {"opt-13b", 819'200}};
  EXPECT_EQ(model_presets().size(), std::size(expected));
  for (const auto& [name, bytes] : expected) {
    const auto model = find_model_preset(name);
    ASSERT_TRUE(model) << name;
    EXPECT_EQ(token_bytes(*model), bytes) << name;
    EXPECT_GT(*model->num_parameters, 7'000'000'000) << name;
  }
  EXPECT_FALSE(find_model_preset("llama"));
}

class model_config : public testing::Test {
 protected:
  result<model_shape> read(const std::string& json) {
    std::ofstream(path_) << json;
    return read_model_config(path_);
  }
  ~model_config() override { std::filesystem::remove(path_); }

 private:
  std::string path_ = testing::TempDir() + testing::UnitTest::GetInstance()->current_test_info()->name() + ".json";
};

TEST_F(model_config, LlamaNamesItsKvHeads) {
  const model_shape model = read(R"({"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                                     "hidden_size": 4096, "torch_dtype": "bfloat16", "model_type": "llama"})")
                                .value();
  EXPECT_EQ(model.num_layers, 32);
  EXPECT_EQ(model.num_kv_heads, 8);
  EXPECT_EQ(model.head_dim, 128);
  EXPECT_EQ(model.type, dtype::bf16);
  EXPECT_EQ(model.name, "llama");
  EXPECT_FALSE(model.num_parameters);
}

TEST_F(model_config, ChatGlmGroupsItsQueries) {
  const model_shape model = read(R"({"num_layers": 40, "num_attention_heads": 32, "multi_query_attention": true,
                                     "multi_query_group_num": 2, "kv_channels": 128, "hidden_size": 4096})")
                                .value();
  EXPECT_EQ(model.num_layers, 40);
  EXPECT_EQ(model.num_kv_heads, 2);
  EXPECT_EQ(model.head_dim, 128);
  EXPECT_EQ(read(R"({"num_layers": 28, "num_attention_heads": 32, "multi_query_attention": false,
                     "multi_query_group_num": 2, "hidden_size": 4096})")
                .value()
                .num_kv_heads,
            32);
}

TEST_F(model_config, HeadDimIsTakenWhereItIsGiven) {
  EXPECT_EQ(
      read(R"({"num_hidden_layers": 1, "num_attention_heads": 16, "hidden_size": 3072, "head_dim": 256})").value().head_dim,
      256);
  EXPECT_EQ(
      read(R"({"num_hidden_layers": 1, "num_attention_heads": 16, "hidden_size": 3072, "head_dim": null})").value().head_dim,
      192);
}

TEST_F(model_config, ReadsTheTextPartOfAMultimodalModel) {
  EXPECT_EQ(read(R"({"model_type": "x", "text_config": {"num_hidden_layers": 5, "num_attention_heads": 4, "hidden_size": 64}})")
                .value()
                .num_layers,
            5);
}

TEST_F(model_config, SaysWhichFieldIsMissingOrWrong) {
  const std::pair<const char*, const char*> wrong[] = {
      {R"({"num_attention_heads": 4, "hidden_size": 64})", "num_hidden_layers"},
      {R"({"num_hidden_layers": 0, "num_attention_heads": 4, "hidden_size": 64})", "num_hidden_layers"},
      {R"({"num_hidden_layers": "5", "num_attention_heads": 4, "hidden_size": 64})", "num_hidden_layers"},
      {R"({"num_hidden_layers": 5, "hidden_size": 64})", "num_key_value_heads"},
      {R"({"num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": -1, "hidden_size": 64})",
       "num_key_value_heads"},
      {R"({"num_hidden_layers": 5, "num_attention_heads": 4})", "head_dim"},
      {R"({"num_hidden_layers": 5, "num_attention_heads": 5, "hidden_size": 64})", "hidden_size"},
      {R"({"num_hidden_layers": 61, "num_attention_heads": 128, "hidden_size": 7168, "kv_lora_rank": 512})", "kv_lora_rank"},
      {"[]", "JSON"},
      {"{\"num_hidden_layers\": 5", "JSON"},
      {"", "JSON"},
  };
  for (const auto& [json, field] : wrong) {
    const result<model_shape> refused = read(json);
    ASSERT_FALSE(refused) << json;
    EXPECT_EQ(refused.error().code, errc::invalid_argument);
    EXPECT_NE(refused.error().message().find(field), std::string::npos) << refused.error().message();
  }
  EXPECT_FALSE(read_model_config("/nowhere/config.json"));
}

}  // namespace
