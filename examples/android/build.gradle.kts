android {
    androidResources {
        noCompress += "tflite" // the file is mapped into memory, which a compressed one cannot be
    }
}

dependencies {
    implementation("com.google.mediapipe:tasks-vision:0.10.14")
}
