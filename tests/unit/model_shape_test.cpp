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

// A single head for keys and values is a flag, which the models' own code takes before the number of heads beside it.
TEST_F(model_config, MultiQueryIsOneKvHead) {
  const model_shape starcoder = read(R"({"model_type": "gpt_bigcode", "n_layer": 40, "n_head": 48, "n_embd": 6144,
                                         "multi_query": true})")
                                    .value();
  EXPECT_EQ(starcoder.num_layers, 40);
  EXPECT_EQ(starcoder.num_kv_heads, 1);
  EXPECT_EQ(starcoder.head_dim, 128);
  const model_shape falcon_7b = read(R"({"model_type": "falcon", "num_hidden_layers": 32, "num_attention_heads": 71,
                                         "hidden_size": 4544, "multi_query": true, "new_decoder_architecture": false,
                                         "num_kv_heads": 71})")
                                    .value();
  EXPECT_EQ(falcon_7b.num_kv_heads, 1);
  EXPECT_EQ(falcon_7b.head_dim, 64);
  EXPECT_EQ(read(R"({"n_layer": 24, "n_head": 16, "n_embd": 2048, "multi_query": false})").value().num_kv_heads, 16);
}

TEST_F(model_config, FalconsNewArchitectureNamesItsKvHeads) {
  for (const char* const fields :
       {R"("num_hidden_layers": 60, "num_attention_heads": 128, "multi_query": true, "new_decoder_architecture": true,
           "num_kv_heads": 8)",
        R"("n_layer": 60, "n_head": 128, "n_head_kv": 8)"}) {
    const model_shape falcon_40b = read(std::string(R"({"hidden_size": 8192, )") + fields + "}").value();
    EXPECT_EQ(falcon_40b.num_layers, 60);
    EXPECT_EQ(falcon_40b.num_kv_heads, 8);
    EXPECT_EQ(falcon_40b.head_dim, 64);
  }
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

/// A config whose only unusual field is `field`.
std::string config_with(const std::string& field) {
  return R"({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, )" + field + "}";
}

TEST_F(model_config, RefusesAFieldThatIsThereAndCannotBeUsed) {
  struct unusable {
    const char* field;
    std::int64_t value;  // what the error says
  };
  const std::string good = config_with(R"("x": 0)");
  ASSERT_TRUE(read(good));
  for (const char* name : {"head_dim", "kv_channels", "num_key_value_heads", "num_kv_heads", "n_head_kv",
                           "multi_query_group_num", "num_layers", "n_layer", "n_head", "n_embd"}) {
    for (const auto& [value, number] : {unusable{"\"64\"", 64},
                                        {"\"many\"", error::none},
                                        {"64.0", 64},
                                        {"64.5", error::none},
                                        {"1e300", error::none},
                                        {"0", 0},
                                        {"-4", -4},
                                        {"2147483648", 2'147'483'648},
                                        {"18446744073709551615", INT64_MAX},
                                        {"true", error::none},
                                        {"[64]", error::none},
                                        {"{}", error::none}}) {
      const result<model_shape> refused = read(config_with(std::string("\"") + name + "\": " + value));
      ASSERT_FALSE(refused) << name << " " << value;
      EXPECT_EQ(refused.error().code, errc::invalid_argument);
      EXPECT_NE(refused.error().message().find(name), std::string::npos) << refused.error().message();
      EXPECT_EQ(refused.error().value, number) << refused.error().message();
    }
    EXPECT_TRUE(read(config_with(std::string("\"") + name + "\": null"))) << name;
  }
  for (const char* field :
       {R"("_name_or_path": 5)", R"("model_type": [])", R"("multi_query_attention": "yes")", R"("multi_query": 1)",
        R"("new_decoder_architecture": "no")", R"("text_config": 7)", R"("torch_dtype": 16)",
        R"("torch_dtype": "float8_e4m3fn")", R"("torch_dtype": "bfloat17")", R"("dtype": "i4")", R"("dtype": "auto")"}) {
    const result<model_shape> refused = read(config_with(field));
    ASSERT_FALSE(refused) << field;
    const std::string name = std::string(field).substr(1, std::string(field).find('"', 1) - 1);
    EXPECT_NE(refused.error().message().find(name), std::string::npos) << refused.error().message();
  }
}

TEST_F(model_config, TakesTheTypeBesideTextConfigBeforeTheOneInIt) {
  const std::string numbers = R"("num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64)";
  const auto type = [&](const std::string& outer, const std::string& inner) {
    return read("{" + outer + R"("text_config": {)" + inner + numbers + "}}").value().type;
  };
  EXPECT_EQ(type("", ""), std::nullopt);
  EXPECT_EQ(type(R"("torch_dtype": "float32", )", ""), dtype::f32);
  EXPECT_EQ(type(R"("dtype": "float32", )", ""), dtype::f32);
  EXPECT_EQ(type("", R"("dtype": "float16", )"), dtype::f16);
  EXPECT_EQ(type(R"("torch_dtype": null, )", R"("torch_dtype": "float16", )"), dtype::f16);
  EXPECT_EQ(type(R"("torch_dtype": "bfloat16", )", R"("torch_dtype": "float32", )"), dtype::bf16);
  EXPECT_EQ(type(R"("torch_dtype": "float16", "dtype": "float16", )", ""), dtype::f16);
  EXPECT_FALSE(read(config_with(R"("torch_dtype": "float16", "dtype": "float32")")));
  EXPECT_FALSE(read(R"({"torch_dtype": "float32", "text_config": {"torch_dtype": "half", )" + numbers + "}}"));
}

TEST_F(model_config, RefusesAKeyThatStandsTwice) {
  EXPECT_FALSE(read(config_with(R"("head_dim": 16, "head_dim": 32)")));
  EXPECT_FALSE(read(R"({"text_config": )" + config_with(R"("head_dim": 16, "head_dim": 32)") + "}"));
  EXPECT_TRUE(read(config_with(R"("a": {"head_dim": 16}, "b": [{"head_dim": 16}, {"head_dim": 16}])")));
}

TEST_F(model_config, ReadsWhatIsNoConfigInBoundedMemory) {
  const auto refusal = [](const std::string& path) { return read_model_config(path).error().message(); };
  EXPECT_NE(refusal(testing::TempDir()).find("directory"), std::string::npos);
  EXPECT_NE(refusal("/proc/self/mem").find("cannot be read"), std::string::npos);
  EXPECT_NE(refusal("/dev/zero").find("16 MiB"), std::string::npos);
  EXPECT_FALSE(read(R"({"text_config": {"x": )" + std::string(1 << 20, '[')));
  EXPECT_FALSE(read(R"({"text_config": {"x": )" + std::string(200'000, '[') + std::string(200'000, ']') + "}}"));
  EXPECT_TRUE(read("\xEF\xBB\xBF" + config_with(R"("x": 0)") + "\r\n"));
  EXPECT_FALSE(read(config_with(R"("x": 0)") + '\0'));
}

TEST_F(model_config, NamesAModelByWhatItHolds) {
  EXPECT_EQ(read(config_with(R"("_name_or_path": "", "model_type": "llama")")).value().name, "llama");
  EXPECT_EQ(read(config_with(R"("_name_or_path": null)")).value().name, "model");
}

}  // namespace
